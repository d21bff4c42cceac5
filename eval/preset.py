"""Presets of the report: a TOML file becomes flags placed before the person's own."""

import dataclasses
import difflib
import tomllib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from eval.config import ReportConfig, ScoringConfig
from eval.errors import EvalError

PRESETS = Path(__file__).parent / "presets"


def preset_flags(argv: Sequence[str]) -> list[str]:
    """Return the flags of the preset that a command line names, or none.

    Raises:
        EvalError: If there is no such preset, or it cannot be read or has an unknown key.
    """
    names = [after for flag, after in pairwise(argv) if flag == "--preset"]
    names += [flag.removeprefix("--preset=") for flag in argv if flag.startswith("--preset=")]
    if not names:
        return []
    shipped = {path.stem: path for path in sorted(PRESETS.glob("*.toml"))}
    path = Path(names[-1]) if names[-1].endswith(".toml") else shipped.get(names[-1])
    if path is None:
        raise EvalError(
            f"There is no preset {names[-1]}; --preset takes {', '.join(shipped)} or a .toml file."
        )
    return read_preset(path)


def read_preset(path: Path) -> list[str]:
    """Return a TOML file as flags; its keys are the flags' names.

    Raises:
        EvalError: If it cannot be read or has an unknown key.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EvalError(f"The preset {path} cannot be read as TOML: {error}.") from error
    options = [
        option.name for part in (ReportConfig, ScoringConfig) for option in dataclasses.fields(part)
    ]
    flags: list[str] = []
    for key, value in table.items():
        if key not in options:
            near = difflib.get_close_matches(key, options, n=1)
            hint = f"perhaps you meant {near[0]}" if near else "see --help for the options"
            raise EvalError(f"The preset {path} has the unknown key {key}; {hint}.")
        flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    return flags
