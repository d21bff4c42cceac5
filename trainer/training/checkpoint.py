"""Write, find and load checkpoints; a checkpoint is whole or absent."""

import json
import logging
import shutil
import tomllib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.optim import Optimizer

from loldu.base.record import CONFIG
from loldu.errors import LoLDUError
from loldu.options import options
from trainer.methods.trained import Trained
from trainer.options.concepts import concept_configs
from trainer.options.config import Config, to_toml
from trainer.training.ema import EMA

logger = logging.getLogger(__name__)

PREFIX = "checkpoint-"
_TRAINED, _OPTIMIZER, _STATE = "trained.safetensors", "optimizer.pt", "state.json"


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
    """Write `checkpoint-<step>` under a temporary name and rename it, so that it is never partial.

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
    """
    final = config.run.output_dir / f"{PREFIX}{progress.step:06d}"
    folder = final.with_name(f".{final.name}.tmp")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    weights = {name: tensor.contiguous() for name, tensor in trained.state_dict().items()}
    save_file(weights, folder / _TRAINED)
    scaler = accelerator.scaler.state_dict() if accelerator.scaler else {}
    state = {"optimizer": optimizer.state_dict(), "scaler": scaler, "ema": ema.state()}
    torch.save(state, folder / _OPTIMIZER)
    (folder / CONFIG).write_text(to_toml(config), encoding="utf-8")
    for name, own in _concepts(config).items():
        (folder / f"concept.{name}.toml").write_text(to_toml(own), encoding="utf-8")
    save_concepts(folder)
    state_json = json.dumps({**asdict(progress), "inputs": inputs}, indent=2)
    (folder / _STATE).write_text(state_json, encoding="utf-8")
    shutil.rmtree(final, ignore_errors=True)
    folder.rename(final)
    logger.info("Checkpoint: %s", final)
    limit = config.run.checkpoints_total_limit
    for old in checkpoints(config.run.output_dir)[: -limit if limit else 0]:
        shutil.rmtree(old)
    return final


def checkpoints(output_dir: Path) -> list[Path]:
    """Return the complete checkpoints of a run, oldest first."""
    return sorted(path for path in output_dir.glob(f"{PREFIX}*") if (path / _STATE).is_file())


def find_checkpoint(config: Config) -> Path | None:
    """Return the checkpoint that --resume names, or None for `latest` if there is none yet.

    Raises:
        LoLDUError: If the folder is not a checkpoint, or its run had other options.
    """
    resume = config.run.resume
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
        if not (folder / _STATE).is_file():
            raise LoLDUError(f"--resume {folder} is not a checkpoint folder; name one, or latest.")
    _check_same_run(config, folder)
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
        weights = load_file(folder / _TRAINED)
        state = torch.load(folder / _OPTIMIZER, map_location="cpu", weights_only=True)
        progress = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        was = progress.pop("inputs")
        for what in sorted({*was, *inputs}):
            if was.get(what) != inputs.get(what):
                raise LoLDUError(
                    f"{what} has changed since {folder} was made; resume with what it was "
                    f"({was.get(what)}, now {inputs.get(what)}), or start a new run."
                )
        progress = Progress(**progress)
        trained.load_state_dict(weights)
        optimizer.load_state_dict(state["optimizer"])
        ema.load(state["ema"])
        if accelerator.scaler:
            accelerator.scaler.load_state_dict(state["scaler"])
    except (
        *(OSError, EOFError, SafetensorError, UnpicklingError),
        *(RuntimeError, ValueError, KeyError, TypeError),
    ) as error:
        raise LoLDUError(
            f"The checkpoint {folder} is damaged; delete it and resume from the one before "
            f"({str(error).splitlines()[0]})."
        ) from error
    logger.info("Resuming after step %d from %s", progress.step, folder)
    return progress


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
    was = tomllib.loads(path.read_text(encoding="utf-8"))
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
                    f"--{key} is {after} but was {before} in {path.parent}; resume with the "
                    f"options of that run (--preset {path} has them all)."
                )
