"""Write, find and load checkpoints; a checkpoint is whole or absent."""

import hashlib
import json
import logging
import math
import re
import shutil
import struct
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from loldu.base.record import CONFIG
from loldu.concept.format import reason_of
from loldu.concept.metadata import shown
from loldu.errors import LoLDUError
from loldu.files import read_toml
from loldu.options import options
from trainer.methods.trained import Trained
from trainer.options.concepts import concept_configs
from trainer.options.config import Config, to_toml
from trainer.results.manifest import Manifest
from trainer.training.ema import EMA

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
_TRAINED, _OPTIMIZER, _STATE = "trained.safetensors", "optimizer.pt", "state.json"
FILES = (_TRAINED, _OPTIMIZER, _STATE)
_SUMS = "sha256"
"""Key in the state for the SHA-256 of the other files and of the rest of the state."""
_MOST_STEPS = 2**53
_MARGIN_BYTES = 2**20
"""For headers, options and concept files."""


@dataclass(frozen=True)
class Progress:
    """Finished optimizer steps, and the seconds of the run's `Clock`."""

    step: int = 0
    seconds: float = 0.0


Inputs = dict[str, str | int]
"""Digests of what a run is made from beside its options, by name."""


def save_checkpoint(
    config: Config,
    inputs: Inputs,
    progress: Progress,
    trained: Trained,
    optimizer: Optimizer,
    ema: EMA,
    accelerator: Accelerator,
    save_concepts: Callable[[Path], object],
) -> Path:
    """Write `checkpoint-<step>` as a draft and rename it, so that it is never partial.

    The learning rate and all randomness follow from the step. So the trained parameters, their
    average, optimizer, loss scaler and step are the whole state. Eight arguments, because they are
    that state and the options that belong to it.

    Args:
        config: Options of the run.
        inputs: Digests of base and pictures, compared on resuming.
        progress: Steps and seconds.
        trained: What is trained.
        optimizer: Its optimizer.
        ema: Its average.
        accelerator: Its loss scaler.
        save_concepts: Writes the concept files for people into a folder; resuming ignores them.

    Returns:
        The folder of the checkpoint.

    Raises:
        LoLDUError: If the disk lacks the room, or it cannot be written.
    """
    final = config.run.output_dir / f"{PREFIX}{progress.step:06d}"
    manifest = Manifest(config.run.output_dir)
    weights = {name: tensor.contiguous() for name, tensor in trained.state_dict().items()}
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
    state = {"optimizer": optimizer.state_dict(), "scaler": scaler, "ema": ema.state()}
    with saving(final, size_of(weights) + size_of(state)), manifest.drafted(final) as folder:
        save_file(weights, folder / _TRAINED)
        torch.save(state, folder / _OPTIMIZER)
        (folder / CONFIG).write_text(to_toml(config), encoding="utf-8")
        for name, own in _concepts(config).items():
            (folder / f"concept.{name}.toml").write_text(to_toml(own), encoding="utf-8")
        save_concepts(folder)
        whole = {**asdict(progress), "inputs": inputs}
        whole[_SUMS] = _sums(folder, whole)
        (folder / _STATE).write_text(json.dumps(whole, indent=2), encoding="utf-8")
    logger.info("Checkpoint: %s", final)
    limit = config.run.checkpoints_total_limit
    for old in checkpoints(config.run.output_dir)[: -limit if limit else 0]:
        manifest.remove(old)
    return final


@contextmanager
def saving(path: Path, size: int) -> Iterator[None]:
    """Save something large inside the block, and report a failure in one sentence.

    Args:
        path: The file or folder.
        size: Its size in bytes, without small files.

    Raises:
        LoLDUError: If the disk has too little room, so that the save is not begun, or if it fails.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size + _MARGIN_BYTES:
        needed = (size + _MARGIN_BYTES) / 2**20
        raise LoLDUError(
            f"There is no room for {path}: it needs {needed:,.0f} MiB, and {free / 2**20:,.0f} MiB "
            "are free; free some space, then continue from the checkpoint before with --resume "
            "latest."
        )
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # RuntimeError: torch.save's
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise LoLDUError(
            f"{path} could not be saved ({_reason(error)}); make sure that the disk has room "
            "and works, then continue from the checkpoint before with --resume latest."
        ) from error


def _reason(error: Exception) -> str:
    """Return why a save failed; torch's own message hides that the disk is full."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).splitlines()[0].rstrip(".")
    by_torch = "inline_container" in text or "PytorchStreamWriter" in text
    return "a write failed, most often because the disk is full" if by_torch else text


def size_of(values: Any) -> int:  # noqa: ANN401
    """Return the total size of the tensors in nested dictionaries and lists."""
    if isinstance(values, torch.Tensor):
        return values.nbytes
    if isinstance(values, dict):
        return sum(map(size_of, values.values()))
    return sum(map(size_of, values)) if isinstance(values, list | tuple) else 0


def checkpoints(output_dir: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    found = {
        int(match[1]): path
        for path in output_dir.glob(f"{PREFIX}*")
        if (match := re.fullmatch(rf"{PREFIX}(\d{{6,}})", path.name)) and read_state(path)
    }
    return [found[step] for step in sorted(found)]


def read_state(folder: Path) -> dict[str, Any] | None:
    """Return the steps, seconds and inputs in a checkpoint, or None if it is not one of ours."""
    try:
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        known = {*(field.name for field in fields(Progress)), "inputs"}
        whole = all((folder / name).is_file() for name in (*FILES, CONFIG))
        sound = (
            known <= state.keys()
            and type(state["step"]) is int
            and isinstance(state["inputs"], dict)
        )
        sound = sound and math.isfinite(state["seconds"])
        return state if sound and 0 < state["step"] < _MOST_STEPS and whole else None
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        return None


def find_checkpoint(config: Config) -> Path | None:
    """Return the checkpoint that --resume names, or None for `latest` if there is none yet.

    Raises:
        LoLDUError: If the folder is not a checkpoint, its run had other options, or it is beyond
            --max_train_steps.
    """
    resume, steps = config.run.resume, config.optimization.max_train_steps
    if resume is None:
        return None
    if resume == "latest":
        found = checkpoints(config.run.output_dir)
        if not found:
            logger.info("No checkpoint in %s yet: starting from step 0.", config.run.output_dir)
            return None
        folder = found[-1]
    else:
        folder = Path(resume)
    state = read_state(folder)
    if state is None:
        raise LoLDUError(f"--resume {folder} is not a checkpoint folder; name one, or latest.")
    _check_same_run(config, folder)
    if state["step"] > steps:
        raise LoLDUError(
            f"{folder} is at step {state['step']}, beyond --max_train_steps {steps}; name an "
            "earlier checkpoint with --resume, or give more steps."
        )
    return folder


def load_checkpoint(
    folder: Path,
    inputs: Inputs,
    trained: Trained,
    optimizer: Optimizer,
    ema: EMA,
    accelerator: Accelerator,
) -> Progress:
    """Load trained parameters, their average, optimizer and loss scaler.

    Raises:
        LoLDUError: If a file of the checkpoint is damaged, or the base, the pictures or the
            number of processes have changed.
    """
    try:
        progress = read_state(folder) or {}
        _check_sums(folder, progress)
        weights = load_file(folder / _TRAINED)
        state = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
        was = progress.pop("inputs")
        for what in sorted({*was, *inputs}):
            if was.get(what) != inputs.get(what):
                raise LoLDUError(
                    f"{shown(what)} has changed since {folder} was made; resume with what it was "
                    f"({shown(was.get(what))}, now {inputs.get(what)}), or start a new run."
                )
        progress = Progress(**progress)
        if strange := weights.keys() ^ trained.state_dict().keys():  # PEFT would skip them
            raise ValueError(f"{min(strange)} is missing, or not trained here")
        trained.load_state_dict(weights)
        optimizer.load_state_dict(state["optimizer"])
        ema.load(state["ema"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
    except (
        *(OSError, EOFError, SafetensorError, UnpicklingError, ImportError),
        *(RuntimeError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
        *(OverflowError, MemoryError, struct.error),
    ) as error:
        raise LoLDUError(
            f"The checkpoint {folder} is damaged; delete it and resume from the one before "
            f"({shown(reason_of(error), 200)})."
        ) from error
    logger.info("Resuming after step %d from %s", progress.step, folder)
    return progress


def _sums(folder: Path, state: dict[str, Any]) -> dict[str, str]:
    """Return the SHA-256 of the large files of a checkpoint, and of its state."""
    sums = {_STATE: hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()}
    for name in (_TRAINED, _OPTIMIZER):
        with (folder / name).open("rb") as file:
            sums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def _check_sums(folder: Path, state: dict[str, Any]) -> None:
    """Check that a checkpoint is as it was saved, and take its checksums out of the state.

    Checkpoints of earlier versions have no checksums.

    Raises:
        ValueError: If a byte has changed.
    """
    was = state.pop(_SUMS, None)
    if was is None:
        return
    now = _sums(folder, state)
    if changed := [name for name in now if was.get(name) != now[name]]:
        raise ValueError(f"{min(changed)} has changed since it was saved")


def _concepts(config: Config) -> dict[str, Config]:
    """Return the options of every concept, if the run has --concepts."""
    return concept_configs(config) if config.instance.concepts else {}


def _check_same_run(config: Config, folder: Path) -> None:
    """Check that the options that decide the adapter are those of the checkpoint."""
    for path, now in [
        (folder / CONFIG, config),
        *((folder / f"concept.{name}.toml", own) for name, own in _concepts(config).items()),
    ]:
        if not path.is_file():
            raise LoLDUError(
                f"--concepts has a concept that {folder} lacks (there is no {path.name}); resume "
                "with the concepts of that run."
            )
        _check_same_options(now, path)


def _check_same_options(config: Config, path: Path) -> None:
    was = read_toml(path, "The options of the checkpoint")
    if not all(isinstance(section, dict) for section in was.values()):
        raise LoLDUError(
            f"{path} is damaged; delete the checkpoint and resume from the one before."
        )
    now = tomllib.loads(to_toml(config))
    same = {"same"}
    if config.optimization.lr_scheduler != "constant":  # the others are stretched over the steps
        same.add("same_unless_constant")
    # Scores of other prompts or models would not compare with those that are there.
    if all(run.get("scores", {}).get("validation_scores") for run in (was, now)):
        same.add("same_if_scored")
    known = options(type(config))
    for section in now:
        for key in sorted({*was.get(section, {}), *now[section]}):
            before, after = was.get(section, {}).get(key), now[section].get(key)
            must_be_same = key not in known or known[key].resume in same
            if must_be_same and before != after:
                raise LoLDUError(
                    f"--{shown(key)} is {after} but was {shown(before)} in {path.parent}; resume "
                    f"with the options of that run (--preset {path} has them all)."
                )
