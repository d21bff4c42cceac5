"""Report a run's metrics and validation sheets to TensorBoard and Weights & Biases."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker, WandBTracker
from PIL import Image

from loldu.errors import LoLDUError
from trainer.options.concepts import SINGLE
from trainer.options.config import Config, RunConfig, Tracker, sections

TRACKING = "tracking"
PROJECT = "loldu"


def check_trackers(run: RunConfig) -> None:
    """Check libraries and logins before any work is done.

    Raises:
        LoLDUError: If a tracker's library is not installed, or its login fails.
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
            with _in_one_sentence(name):  # asks for a key if there is none and a terminal
                wandb: Any = import_module(name)
                wandb.login(verify=True)


def start_trackers(accelerator: Accelerator, config: Config, first_step: int) -> None:
    """Start the trackers of a run that continues after `first_step` steps.

    Raises:
        LoLDUError: If a tracker does not start.
    """
    for name in config.run.report_to if accelerator.is_main_process else ():
        tracker = _tracker(name, config, first_step)
        with _in_one_sentence(name):
            tracker.start()
        accelerator.trackers.append(tracker)


def track(accelerator: Accelerator, concept: str, line: dict[str, Any], step: int) -> None:
    """Report one concept's line of `metrics.jsonl` or its scores."""
    known = {key: value for key, value in line.items() if key != "step" and value is not None}
    accelerator.log({_title(concept, key): value for key, value in known.items()}, step=step)


def track_sheet(accelerator: Accelerator, concept: str, sheet: Image.Image, step: int) -> None:
    """Report one concept's validation sheet."""
    images = {_title(concept, "validation"): np.asarray(sheet)[None]}
    for tracker in accelerator.trackers:
        layout = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
        tracker.log_images(images, step=step, **layout)


@contextmanager
def _in_one_sentence(name: Tracker) -> Iterator[None]:
    """Raise any error of a tracker's library as a LoLDUError of one sentence."""
    try:
        yield
    except Exception as error:  # each library has errors of its own
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise LoLDUError(f"--report_to {name} does not start: {reason}.") from error


def _title(concept: str, key: str) -> str:
    return key if concept == SINGLE else f"{concept}/{key}"


def _tracker(name: Tracker, config: Config, first_step: int) -> TensorBoardTracker | WandBTracker:
    folder = config.run.output_dir / TRACKING
    folder.mkdir(parents=True, exist_ok=True)
    if name == "tensorboard":  # steps taken again after a kill replace the earlier ones
        return TensorBoardTracker(name, folder, purge_step=first_step + 1)
    # W&B's steps only grow, so a resumed run is a new run in the same group.
    group = config.run.output_dir.resolve().name
    options = {name: sections(config)[name] for name in ("adapter", "optimization")}
    return WandBTracker(PROJECT, dir=folder, group=group, config=options)
