"""TOML presets as command-line flags, placed before the ones that were typed."""

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from loldu.errors import LoLDUError, hint
from loldu.files import read_toml


def preset_flags(argv: Sequence[str], shipped: Path, options: Sequence[str]) -> list[str]:
    """The flags of the preset that a command line names, the last one if several; or none.

    Args:
        argv: a command line, with `--preset NAME` or `--preset FILE.toml` or without.
        shipped: folder with the presets that have names.
        options: the keys that are known.

    Raises:
        LoLDUError: for an unknown preset, or one that `read_preset` refuses.
    """
    named = [after for flag, after in pairwise(argv) if flag == "--preset"]
    named += [flag.removeprefix("--preset=") for flag in argv if flag.startswith("--preset=")]
    if not named:
        return []
    if named[-1].endswith(".toml"):
        return read_preset(Path(named[-1]), options)
    names = sorted(path.stem for path in shipped.glob("*.toml"))
    if named[-1] not in names:
        raise LoLDUError(
            f"There is no preset {named[-1]}; --preset takes {', '.join(names)} or a .toml file."
        )
    return read_preset(shipped / f"{named[-1]}.toml", options)


def read_preset(path: Path, options: Sequence[str]) -> list[str]:
    """A TOML file as flags; its keys are the flags' names, grouped in tables or not.

    Raises:
        LoLDUError: when it cannot be read or has a key that is not among `options`.
    """
    flags: list[str] = []
    for key, value in _flat(read_toml(path, "The preset")):
        if key not in options:
            perhaps = hint(key, options, "see --help for the options")
            raise LoLDUError(f"The preset {path} has the unknown key {key}; {perhaps}.")
        flags += as_flags(key, value)
    return flags


def _flat(table: dict[str, Any]) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in table.items():
        pairs += _flat(value) if isinstance(value, dict) else [(key, value)]
    return pairs


def as_flags(key: str, value: Any) -> list[str]:  # noqa: ANN401
    """An option and its value, as TOML has it, as flags."""
    if isinstance(value, bool):
        return [f"--{key}" if value else f"--no_{key}"]
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", str(value)]
