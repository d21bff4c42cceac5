"""The kinds of experiment: each module trains and evaluates one `Run`: ``run(run, work)``."""

import importlib
from pathlib import Path

from experiments.config import Run
from experiments.outcome import Outcome
from trainer.errors import TrainerError

KINDS = ("vision", "glue", "instruct", "personalization")


def perform(kind: str, run: Run, work: Path) -> Outcome:
    """Train and evaluate a run; what it leaves in `work` lets a killed one go on.

    Raises:
        TrainerError: Something about the run cannot be.
    """
    if kind not in KINDS:
        raise TrainerError(f"There is no kind of experiment {kind}: it is {', '.join(KINDS)}.")
    return importlib.import_module(f"experiments.kinds.{kind}").run(run, work)
