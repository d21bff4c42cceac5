"""The options of a job from the page, checked and written into its folder."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from loldu.base.record import CONFIG
from loldu.errors import LoLDUError
from loldu.files import read_toml, write_atomically
from loldu.options import options as known_options
from loldu.presets import flat, shipped_presets
from trainer.options.config import Config, to_toml
from trainer.options.preset import PRESETS, configure
from webui.engine.job import Job, Kind

OPTIONS = "options.toml"
GONE = "Its folder is gone or damaged: remove it from the list, and start it anew."
_REAL = "real"
_SCORED, _READ_BESIDE = "concept", ("concept.safetensors", "config.toml", "summary.json")
_JOB_SETS = {
    Kind.TRAIN: {
        "output_dir",
        *(each.name for each in known_options(Config).values() if not each.saved),
    },
    Kind.SCORE: {"output_dir", "concept", "overwrite", _REAL},
}


def write_options(folder: Path, options: Mapping[str, Any], preset: str | None = None) -> None:
    """Write every option of a training into its folder, with those of a preset and the defaults.

    Args:
        folder: Folder of the training.
        options: Values by option name, in tables or not; None stands for preset and default.
        preset: Name of a preset that the trainer ships.

    Raises:
        LoLDUError: If an option is unknown or cannot work.
    """
    of_preset: Mapping[str, Any] = {}
    if preset is not None:
        shipped = shipped_presets(PRESETS)
        if preset not in shipped:
            raise LoLDUError(f"There is no preset {preset}; known are {', '.join(shipped)}.")
        of_preset = shipped[preset].values
    values = {**of_preset, **_refuse_own(flat(options), Kind.TRAIN)}
    config = configure({**values, "output_dir": folder})
    _write(folder, to_toml(config))


def write_score_options(
    folder: Path, files: Path, options: Mapping[str, Any], real: Path | None = None
) -> None:
    """Write the options of a scoring into its folder, with a copy of the concept.

    Args:
        folder: Folder of the scoring.
        files: Folder with a concept file and the other files of its run.
        options: Values by option name; None stands for the default.
        real: Folder with real pictures, which are copied too.

    Raises:
        LoLDUError: If an option is unknown or cannot work, or the concept cannot be read.
    """
    from eval.__main__ import parse as parse_score  # slow to import

    values = _refuse_own(flat(options), Kind.SCORE)
    if real:
        values[_REAL] = str(folder / _REAL)
    _write(folder, tomli_w.dumps(values))
    try:
        (folder / _SCORED).mkdir()
        if real is not None:
            shutil.copytree(real, folder / _REAL)
        for name in _READ_BESIDE:
            if (files / name).is_file():
                shutil.copyfile(files / name, folder / _SCORED / name)
    except OSError as error:
        raise LoLDUError(f"The concept cannot be read ({error.strerror}).") from error
    parse_score(flags(folder, Kind.SCORE))


def flags(folder: Path, kind: Kind) -> list[str]:
    """Return the command line of a job, the same to start and to continue.

    A training without a checkpoint starts from the beginning, and without the models for its scores
    it is not scored; a scoring draws missing pictures.
    """
    options = ("--preset", str(folder / OPTIONS), "--output_dir", str(folder))
    if kind is Kind.TRAIN:
        optional = ["--scores_optional"] if _is_scored(folder) else []
        return [*options, *optional, "--resume", "latest"]
    file = folder / _SCORED / _READ_BESIDE[0]
    return ["adapter", *options, "--concept", str(file), "--overwrite"]


def stored_options(folder: Path) -> dict[str, Any]:
    """Return the options of a job by name.

    Raises:
        LoLDUError: If their file is gone or damaged.
    """
    return flat(read_toml(folder / OPTIONS, "The options"))


def require_options(job: Job) -> None:
    """Refuse to start a job without the file of its options.

    Raises:
        LoLDUError: If its folder or this file is gone or damaged.
    """
    try:
        stored_options(job.folder)
    except LoLDUError as error:
        raise LoLDUError(f"{job.name} cannot be resumed. {GONE}") from error


def max_train_steps(folder: Path) -> int:
    """Return the number of steps of a training, or 0 for a scoring.

    Raises:
        LoLDUError: If the file of its options is gone or damaged.
    """
    steps = stored_options(folder).get("max_train_steps")
    return steps if type(steps) is int else 0


def lacks_scores(folder: Path) -> bool:
    """Return whether a training should measure scores, but runs without them.

    The trainer writes its own options when it begins; without the models for the scores, they
    differ.
    """
    try:
        own = flat(read_toml(folder / CONFIG, "The options"))
    except LoLDUError:
        return False
    return _is_scored(folder) and own.get("validation_scores") is False


def _is_scored(folder: Path) -> bool:
    try:
        return stored_options(folder).get("validation_scores") is True
    except LoLDUError:
        return False


@dataclass(frozen=True)
class Asked:
    """Options of a training that its page shows.

    Attributes:
        pictures: Folder of the person's pictures, or None if it is unknown.
        prompts: Prompts of the validation pictures, in order.
        every: Steps between two validation pictures, or 0.
    """

    pictures: Path | None
    prompts: tuple[str, ...]
    every: int


def asked(folder: Path) -> Asked:
    """Return the options that the page of a training shows; empty ones if they cannot be read."""
    try:
        options = stored_options(folder)
    except LoLDUError:
        return Asked(None, (), 0)
    pictures, every = options.get("instance_data_dir"), options.get("validation_steps")
    return Asked(
        Path(pictures) if isinstance(pictures, str) else None,
        tuple(options.get("validation_prompt") or [options.get("instance_prompt", "")]),
        every if type(every) is int else 0,
    )


def _refuse_own(values: dict[str, Any], kind: Kind) -> dict[str, Any]:
    for name in values.keys() & _JOB_SETS[kind]:
        raise LoLDUError(f"The job sets the option {name} itself: leave it out.")
    return values


def _write(folder: Path, content: str) -> None:
    try:
        write_atomically(folder / OPTIONS, content)
    except UnicodeError as error:
        raise LoLDUError(f"The options cannot be written: {error}.") from error
