"""TOML presets: read them, list the shipped ones, and find the one that a command line names.

A preset has options in tables or not, and may describe itself in a table `preset`: `about` is one
sentence, `order` its place in lists, and `family` the kind of base that it is for. Presets without
an order come last, by name.
"""

# The values of TOML files and options have any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import cleandoc
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, cast

from loldu.errors import LoLDUError
from loldu.files import read_toml
from loldu.options import Option, build, toml_value, typed_values, values_of

T = TypeVar("T")

_PACKAGES = Path(__file__).parent.parent
"""Folder of the installed packages; in a checkout, the checkout."""


@dataclass(frozen=True)
class Preset:
    """A preset file.

    Attributes:
        name: File name without .toml.
        about: One sentence, or "".
        order: Place in lists.
        values: TOML values by option name.
        family: Name of the family of bases that it is for, or "" for Stable Diffusion 1.x and 2.x.
    """

    name: str
    about: str
    order: int | float
    values: Mapping[str, Any]
    family: str = ""


def read_preset(path: Path) -> Preset:
    """Return a preset file.

    Raises:
        LoLDUError: If it cannot be read.
    """
    tables = read_toml(path, "The preset")
    given = tables.pop("preset", {})
    if not isinstance(given, dict):
        raise LoLDUError(f"The preset {path}: preset must be a table with about and order.")
    own = cast(dict[str, Any], given)
    about, family = own.get("about", ""), own.get("family", "")
    order = own.get("order", math.inf)
    if not (isinstance(about, str) and isinstance(family, str)) or type(order) not in (int, float):
        raise LoLDUError(
            f"The preset {path}: about and family must be strings, and order a number."
        )
    return Preset(path.stem, about, order, flat(tables), family)


def shipped_presets(folder: Path) -> dict[str, Preset]:
    """Return the presets of a folder by name, in their order, with paths that lead somewhere."""
    found = [read_preset(path) for path in folder.glob("*.toml")]
    return {
        preset.name: replace(
            preset,
            values={
                name: installed_path(value) if isinstance(value, str) else value
                for name, value in preset.values.items()
            },
        )
        for preset in sorted(found, key=lambda preset: (preset.order, preset.name))
    }


def with_list(text: str, folder: Path) -> str:
    """Return the description of a command, with the shipped presets listed below it."""
    presets = shipped_presets(folder).values()
    lines = "".join(f"\n  {preset.name}: {preset.about}" for preset in presets)
    return f"{cleandoc(text)}\n\nPresets:{lines}"


def preset_values(argv: Sequence[str], folder: Path, known: Mapping[str, Option]) -> dict[str, Any]:
    """Return the values of the preset that a command line names, the last one if several.

    Args:
        argv: A command line, with `--preset NAME` or `--preset FILE.toml` or without.
        folder: Folder of the shipped presets, which have names.
        known: The options that a preset may have.

    Raises:
        LoLDUError: If the preset is unknown or cannot be read, if it has an unknown option or a
            value of the wrong type, or if a shipped one needs files that are not installed.
    """
    named = [after for flag, after in pairwise(argv) if flag == "--preset"]
    named += [flag.removeprefix("--preset=") for flag in argv if flag.startswith("--preset=")]
    if not named:
        return {}
    name = named[-1]
    if name.endswith(".toml"):
        preset = read_preset(Path(name))
    else:
        shipped = shipped_presets(folder)
        if name not in shipped:
            raise LoLDUError(
                f"There is no preset {name}; --preset takes {', '.join(shipped)} or a .toml file."
            )
        preset = shipped[name]
        _refuse_missing_files(preset, typed_options(argv))
    return typed_values(preset.values, known, f"The preset {name}", "see --help for the options")


def with_preset(config: T, values: Mapping[str, Any], argv: Sequence[str]) -> T:
    """Return the config of a command line with a preset's values for options that are not typed."""
    typed = typed_options(argv)
    more = {name: value for name, value in values.items() if name not in typed}
    return build(type(config), values_of(config) | more)


def typed_options(argv: Sequence[str]) -> dict[str, str]:
    """Return the options of a command line by name, with the flag of each as it was typed."""
    typed = [flag.partition("=")[0] for flag in argv if flag.startswith("--")]
    return {flag[2:].replace("-", "_").removeprefix("no_"): flag for flag in typed}


def installed_path(place: str) -> str:
    """Return the path of installed data, such as pocket/base, if nothing has that path here.

    Any other text is returned unchanged.
    """
    if "/" not in place or Path(place).exists():
        return place
    # The wheel has datasets/ in experiments/: beside the packages it would hide that library.
    places = (_PACKAGES / place, _PACKAGES / "experiments" / place)
    return str(next((path for path in places if path.exists()), place))


def _refuse_missing_files(preset: Preset, typed: Mapping[str, str]) -> None:
    for name, value in preset.values.items():
        is_path = isinstance(value, str) and value.count("/") > 1  # a hub id has one slash
        if is_path and name not in typed and not Path(value).exists():
            raise LoLDUError(
                f"The preset {preset.name} needs {value}, which is neither here nor in "
                f"{_PACKAGES}: install LoLDU with its data files (pip install loldu), or give "
                f"another --{name}."
            )


def flat(tables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of nested tables by name, as TOML has them; None is left out."""
    values: dict[str, Any] = {}
    for name, value in tables.items():
        if isinstance(value, Mapping):
            values |= flat(cast(Mapping[str, Any], value))
        elif value is not None:
            values[name] = toml_value(value)
    return values
