"""The kinds of experiment: each module trains and evaluates one `Run`: ``run(run, work)``."""

import importlib
from collections.abc import Collection
from pathlib import Path
from typing import get_args

from experiments.config import Run
from experiments.methods import METHODS
from experiments.outcome import Outcome
from trainer.config import Method
from trainer.errors import TrainerError

KINDS = ("vision", "glue", "instruct", "personalization")


def methods_of(kind: str) -> Collection[str]:
    """The methods that a kind of experiment knows: the trainer's own for personalization."""
    return get_args(Method) if kind == "personalization" else METHODS


def perform(kind: str, run: Run, work: Path) -> Outcome:
    """Train and evaluate a run; what it leaves in `work` lets a killed one go on.

    Raises:
        TrainerError: Something about the run cannot be.
    """
    if kind not in KINDS:
        raise TrainerError(f"There is no kind of experiment {kind}: it is {', '.join(KINDS)}.")
    return importlib.import_module(f"experiments.kinds.{kind}").run(run, work)
