"""The options of a job as a page gives them, checked and written down for its process."""

import shutil
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from loldu.errors import LoLDUError
from loldu.files import write_atomically
from trainer.options.config import to_toml
from trainer.options.preset import PRESETS, parse
from webui.engine.job import Kind

OPTIONS = "options.toml"
_OF_THE_JOB = ("output_dir", "resume", "overwrite", "doctor_only", "concept")
_REAL = "real"
_SCORED, _READ_BESIDE = "concept", ("concept.safetensors", "config.toml", "summary.json")
_WRONG_TYPE = "An option is of the wrong type, or one is missing."


def write_options(folder: Path, options: Mapping[str, Any], preset: str | None = None) -> None:
    """Write every option of a training into its folder, those of a preset and of defaults too.

    Args:
        folder: of the training.
        options: by name, in tables or not; what is None is left to preset and defaults.
        preset: one of those that the trainer ships.

    Raises:
        LoLDUError: an option is unknown or cannot work, which is told in a sentence.
    """
    of_preset: dict[str, Any] = {}
    if preset is not None:
        shipped = {path.stem: path for path in PRESETS.glob("*.toml")}
        if preset not in shipped:
            raise LoLDUError(f"There is no preset {preset}; known are {', '.join(shipped)}.")
        of_preset = tomllib.loads(shipped[preset].read_text(encoding="utf-8"))
    _write(folder, _flat(of_preset) | _flat(options))
    try:
        config = parse(flags(folder, Kind.TRAIN))
    except SystemExit as error:  # the parser has told the server's log what it was
        raise LoLDUError(_WRONG_TYPE) from error
    write_atomically(folder / OPTIONS, to_toml(config))


def write_score_options(
    folder: Path, files: Path, options: Mapping[str, Any], real: Path | None = None
) -> None:
    """Write the options of a scoring into its folder, and a copy of what it is of.

    Args:
        folder: of the scoring.
        files: folder with a concept file, and what its run left beside it.
        options: by name; what is None is left to defaults.
        real: folder with true pictures, which are copied too.

    Raises:
        LoLDUError: an option is unknown or cannot work, which is told in a sentence.
    """
    from eval.__main__ import parse as parse_score  # takes seconds, and needs what draws

    if "real" in options:
        raise LoLDUError("The option real is the job's own: leave it out.")
    _write(folder, _flat({**options, "real": folder / _REAL if real else None}))
    try:
        (folder / _SCORED).mkdir()
        if real is not None:
            shutil.copytree(real, folder / _REAL)
        for name in _READ_BESIDE:
            if (files / name).is_file():
                shutil.copyfile(files / name, folder / _SCORED / name)
        parse_score(flags(folder, Kind.SCORE))
    except SystemExit as error:
        raise LoLDUError(_WRONG_TYPE) from error
    except OSError as error:
        raise LoLDUError(f"The concept cannot be read ({error.strerror}).") from error


def flags(folder: Path, kind: Kind) -> list[str]:
    """The command line of a job, to begin and to go on alike.

    Without a checkpoint, a training's `latest` is the beginning; a scoring draws what is missing.
    """
    options = ("--preset", str(folder / OPTIONS), "--output_dir", str(folder))
    if kind is Kind.TRAIN:
        return [*options, "--resume", "latest"]
    file = folder / _SCORED / _READ_BESIDE[0]
    return ["adapter", *options, "--concept", str(file), "--overwrite"]


def max_train_steps(folder: Path) -> int:
    """How many steps a training is to take; none for a scoring."""
    options = tomllib.loads((folder / OPTIONS).read_text(encoding="utf-8"))
    return options.get("optimization", {}).get("max_train_steps", 0)


def _write(folder: Path, chosen: Mapping[str, Any]) -> None:
    for name, value in chosen.items():
        if name in _OF_THE_JOB:
            raise LoLDUError(f"The option {name} is the job's own: leave it out.")
        if any(_could_be_a_flag(text) for text in (value if isinstance(value, list) else [value])):
            raise LoLDUError(f"The option {name} may not begin with a dash.")
    try:
        write_atomically(folder / OPTIONS, tomli_w.dumps(chosen))
    except (UnicodeError, TypeError) as error:
        raise LoLDUError(f"The options cannot be written down: {error}.") from error


def drawn_prompts(folder: Path) -> tuple[str, ...]:
    """The prompts of a training's validation pictures, in their order."""
    options = tomllib.loads((folder / OPTIONS).read_text(encoding="utf-8"))
    given = options["run"]["validation_prompt"] or [options["instance"].get("instance_prompt", "")]
    return tuple(given)


def _flat(table: Mapping[str, Any]) -> dict[str, Any]:
    """The options without their tables, as TOML can hold them."""
    pairs: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            pairs |= _flat(value)
        elif isinstance(value, list | tuple):
            pairs[key] = [_plain(each) for each in value]
        elif value is not None:
            pairs[key] = _plain(value)
    return pairs


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _could_be_a_flag(value: object) -> bool:
    """A command reads its options as flags, where `--push_to_hub` is no prompt."""
    return isinstance(value, str) and value.startswith("-")
