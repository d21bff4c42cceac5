"""Kinds of experiments. Each is a module with ``run(run, work)``, and perhaps ``table(...)``."""

import atexit
import gc
import importlib
from collections.abc import Collection
from functools import cache
from pathlib import Path
from types import ModuleType

from experiments.config import Experiment, Run
from experiments.outcome import Outcome
from experiments.results import Results
from experiments.table import markdown
from loldu.errors import LoLDUError

KINDS = ("vision", "glue", "instruct", "personalization", "concepts", "curves", "metrics")
OWN_TABLES = ("concepts", "curves", "metrics")
"""Kinds with a module `table` of their own; the others share one form."""
_BY_THE_TRAINER = ("personalization", "concepts", "curves", "metrics")


def methods_of(kind: str) -> Collection[str]:
    """Return the methods that a kind of experiment knows, among them the trainer's own."""
    if kind in _BY_THE_TRAINER:
        from typing import get_args

        from trainer.options.config import Method

        return ("none", *get_args(Method))
    from experiments.methods import METHODS

    return METHODS


def perform(kind: str, run: Run, work: Path) -> Outcome:
    """Train and evaluate a run; files in `work` let an interrupted one continue.

    Raises:
        LoLDUError: If the kind is unknown, or the run has a mistake.
    """
    if kind not in KINDS:
        raise LoLDUError(f"There is no kind of experiment {kind}: choose from {', '.join(KINDS)}.")
    return _imported(kind).run(run, work)


def table_of(experiment: Experiment, scale: str, results: Results) -> str:
    """Return the table of an experiment as Markdown, in the form of its kind."""
    experiment.at(scale)
    if experiment.kind in OWN_TABLES:
        module = importlib.import_module(f"experiments.kinds.{experiment.kind}.table")
        return module.table(experiment, scale, results)
    return markdown(experiment, scale, results)


@cache
def _imported(kind: str) -> ModuleType:
    """Import a kind, and exempt all imported objects from garbage collection.

    transformers' Trainer collects at every start, and would visit a million objects.
    """
    module = importlib.import_module(f"experiments.kinds.{kind}")
    gc.collect()
    gc.freeze()
    atexit.register(gc.unfreeze)  # or libraries warn of leaks
    return module
