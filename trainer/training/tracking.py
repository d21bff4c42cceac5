"""A run's numbers and pictures for TensorBoard and Weights & Biases, when asked for."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from accelerate.tracking import TensorBoardTracker, WandBTracker
from PIL import Image

from loldu.errors import LoLDUError
from trainer.options.concepts import SINGLE
from trainer.options.config import Config, RunConfig, Tracker, sections

TRACKING = "tracking"
PROJECT = "loldu"


def check_trackers(run: RunConfig) -> None:
    """Try libraries and logins before any work is done.

    Raises:
        LoLDUError: when the library of a tracker is not installed, or its login fails.
    """
    for name in run.report_to:
        try:
            version(name)
        except PackageNotFoundError as error:
            raise LoLDUError(
                f"--report_to {name} needs the library {name}, which is not installed: "
                f"pip install {name}, or leave the option out."
            ) from error
        if name == "wandb":
            with _refusal(name):  # it asks for a key where there is a terminal and none is known
                wandb: Any = import_module(name)
                wandb.login(verify=True)


class Trackers:
    """The trackers of a run; without any, every method does nothing."""

    def __init__(self, config: Config, first_step: int, *, enabled: bool) -> None:
        """Start them for a run that continues after `first_step` steps.

        Raises:
            LoLDUError: when one does not start.
        """
        self._trackers: list[TensorBoardTracker | WandBTracker] = []
        for name in config.run.report_to if enabled else ():
            tracker = _make(name, config, first_step)
            with _refusal(name):
                tracker.start()
            self._trackers.append(tracker)

    def log(self, concept: str, line: dict[str, Any], step: int) -> None:
        """Report a concept's line of `metrics.jsonl`."""
        values = {
            _title(concept, key): value
            for key, value in line.items()
            if key != "step" and value is not None
        }
        for tracker in self._trackers:
            tracker.log(values, step=step)

    def show(self, concept: str, sheet: Image.Image, step: int) -> None:
        """Report a concept's validation sheet."""
        for tracker in self._trackers:
            layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
            images = {_title(concept, "validation"): np.asarray(sheet)[None]}
            tracker.log_images(images, step=step, **layout)

    def finish(self) -> None:
        """Let them write what is left."""
        for tracker in self._trackers:
            tracker.finish()


@contextmanager
def _refusal(name: Tracker) -> Iterator[None]:
    """What a tracker's library says against its start, in one sentence."""
    try:
        yield
    except Exception as error:  # each library has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise LoLDUError(f"--report_to {name} does not start: {reason}.") from error


def _title(concept: str, key: str) -> str:
    return key if concept == SINGLE else f"{concept}/{key}"


def _make(name: Tracker, config: Config, first_step: int) -> TensorBoardTracker | WandBTracker:
    folder = config.run.output_dir / TRACKING
    folder.mkdir(parents=True, exist_ok=True)
    if name == "tensorboard":  # steps that are taken again after a kill replace their first taking
        return TensorBoardTracker(name, folder, purge_step=first_step + 1)
    # Its steps only ever grow, so a continued run is a run of its own in the same group.
    group = config.run.output_dir.resolve().name
    told = {name: sections(config)[name] for name in ("adapter", "optimization")}
    return WandBTracker(PROJECT, dir=folder, group=group, config=told)
