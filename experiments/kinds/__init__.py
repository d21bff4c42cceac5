"""The kinds of experiment: each module trains and evaluates one `Run`: ``run(run, work)``."""

import atexit
import gc
import importlib
from collections.abc import Collection
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import get_args

from experiments.config import Run
from experiments.methods import METHODS
from experiments.outcome import Outcome
from loldu.errors import LoLDUError
from trainer.options.config import Method

KINDS = ("vision", "glue", "instruct", "personalization")


def methods_of(kind: str) -> Collection[str]:
    """The methods that a kind of experiment knows: the trainer's own for personalization."""
    return get_args(Method) if kind == "personalization" else METHODS


def perform(kind: str, run: Run, work: Path) -> Outcome:
    """Train and evaluate a run; what it leaves in `work` lets a killed one go on.

    Raises:
        LoLDUError: Something about the run cannot be.
    """
    if kind not in KINDS:
        raise LoLDUError(f"There is no kind of experiment {kind}: it is {', '.join(KINDS)}.")
    return _imported(kind).run(run, work)


@cache
def _imported(kind: str) -> ModuleType:
    """A kind's module, with all that it imports out of the garbage collector's sight.

    The Trainer collects at every start, and would go through a million objects of libraries.
    """
    module = importlib.import_module(f"experiments.kinds.{kind}")
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or libraries tell of leaks
    return module
