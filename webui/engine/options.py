"""The trainer's options as a page gives them, checked and written down for a training."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli_w

from trainer.config import to_toml
from trainer.errors import TrainerError
from trainer.files import write_atomically
from trainer.preset import PRESETS, parse

OPTIONS = "options.toml"
_OF_THE_JOB = ("output_dir", "resume", "overwrite", "doctor_only")


def write_options(folder: Path, options: Mapping[str, Any], preset: str | None = None) -> None:
    """Write every option of a training into its folder, those of a preset and of defaults too.

    Args:
        folder: of the training.
        options: by name, in tables or not; what is None is left to preset and defaults.
        preset: one of those that the trainer ships.

    Raises:
        TrainerError: an option is unknown or cannot work, which is told in a sentence.
    """
    of_preset: dict[str, Any] = {}
    if preset is not None:
        shipped = {path.stem: path for path in PRESETS.glob("*.toml")}
        if preset not in shipped:
            raise TrainerError(f"There is no preset {preset}; known are {', '.join(shipped)}.")
        of_preset = tomllib.loads(shipped[preset].read_text(encoding="utf-8"))
    chosen = _flat(of_preset) | _flat(options)
    for name, value in chosen.items():
        if name in _OF_THE_JOB:
            raise TrainerError(f"The option {name} is the job's own: leave it out.")
        if any(_could_be_a_flag(text) for text in (value if isinstance(value, list) else [value])):
            raise TrainerError(f"The option {name} may not begin with a dash.")
    path = folder / OPTIONS
    try:
        write_atomically(path, tomli_w.dumps(chosen))
    except (UnicodeError, TypeError) as error:
        raise TrainerError(f"The options cannot be written down: {error}.") from error
    try:
        config = parse(flags(folder))
    except SystemExit as error:  # the parser has told the server's log what it was
        raise TrainerError("An option is of the wrong type, or one is missing.") from error
    write_atomically(path, to_toml(config))


def flags(folder: Path) -> list[str]:
    """The trainer's command line; without a checkpoint, `latest` is the beginning."""
    options = ("--preset", str(folder / OPTIONS))
    return [*options, "--output_dir", str(folder), "--resume", "latest"]


def max_train_steps(folder: Path) -> int:
    """How many steps a training is to take."""
    options = tomllib.loads((folder / OPTIONS).read_text(encoding="utf-8"))
    return options["optimization"]["max_train_steps"]


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
    """The trainer reads its options as a command line, where `--push_to_hub` is no prompt."""
    return isinstance(value, str) and value.startswith("-")
