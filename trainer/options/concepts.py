"""The options of every concept of a run: one, or those of a TOML file with a table each."""

import re
from pathlib import Path
from typing import Any, cast

from loldu.errors import LoLDUError
from loldu.files import read_toml
from loldu.options import build, options, typed_values, values_of
from trainer.options.checks import check
from trainer.options.config import Config

SINGLE = "default"
"""Adapter name in a run of one concept."""
FOLDER = "concepts"
"""Folder of the concepts' folders, in that of the run."""


def concept_configs(config: Config) -> dict[str, Config]:
    """Return the options of every concept by name: the run's, overridden by the concept's table.

    The files of a concept go into a folder of its name in the run's `concepts`. Paths in the TOML
    file are relative to that file.

    Raises:
        LoLDUError: If --concepts cannot be read, or has options that do not fit.
    """
    path = config.instance.concepts
    if path is None:
        return {SINGLE: config}
    tables = read_toml(path, "--concepts")
    if not tables:
        raise LoLDUError(f"--concepts {path} is empty; begin each concept with [its name].")
    configs: dict[str, Config] = {}
    for name, table in tables.items():
        if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
            raise LoLDUError(
                f"{path}: [{name}] cannot name a concept; use letters, digits, - and _."
            )
        if not isinstance(table, dict):
            raise LoLDUError(
                f"{path}: {name} stands outside a table; begin each concept with [its name]."
            )
        configs[name] = _with(config, name, cast(dict[str, Any], table))
        try:
            check(configs[name])
        except LoLDUError as error:
            raise LoLDUError(f"{path}: [{name}]: {error}") from error
    return configs


def _with(config: Config, name: str, table: dict[str, Any]) -> Config:
    path = config.instance.concepts
    assert path is not None
    known = {key: each for key, each in options(type(config)).items() if each.per_concept}
    own = {
        key: path.parent / value if isinstance(value, Path) else value
        for key, value in typed_values(table, known, f"{path}: [{name}]").items()
    }
    folder = config.run.output_dir / FOLDER / name
    return build(type(config), values_of(config) | own | {"concepts": None, "output_dir": folder})
