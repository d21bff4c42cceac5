"""The options of every concept of a run: one, or those of a TOML file with a table each."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from loldu.errors import LoLDUError, hint
from loldu.files import read_toml
from trainer.options.checks import check
from trainer.options.config import Config

SINGLE = "default"
"""The adapter's name in a run of one concept."""
FOLDER = "concepts"
"""Where the folders of several concepts are, in the run's."""
_PATHS = ("instance_data_dir", "class_data_dir")
_LISTS = ("class_prompt", "validation_prompt", "drift_prompt")
_TEXTS = ("instance_prompt", "token", "placeholder_token", "initializer_token")
_KEYS = (*_PATHS, *_LISTS, *_TEXTS)


def concept_configs(config: Config) -> dict[str, Config]:
    """The options of every concept by name: the run's own, with what its table says.

    A concept's files are in a folder of its name in the run's `concepts`. Paths in the TOML file
    count from where that file is.

    Raises:
        LoLDUError: when --concepts cannot be read, or says what does not fit.
    """
    path = config.instance.concepts
    if path is None:
        return {SINGLE: config}
    tables = _read(path)
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
        values = {key: _value(path, name, key, value) for key, value in table.items()}
        configs[name] = _with(config, name, values)
        try:
            check(configs[name])
        except LoLDUError as error:
            raise LoLDUError(f"{path}: [{name}]: {error}") from error
    return configs


def _read(path: Path) -> dict[str, Any]:
    tables = read_toml(path, "--concepts")
    if not tables:
        raise LoLDUError(f"--concepts {path} is empty; begin each concept with [its name].")
    return tables


def _value(path: Path, concept: str, key: str, value: object) -> Any:  # noqa: ANN401
    if key not in _KEYS:
        perhaps = hint(key, _KEYS, f"a concept has {', '.join(_KEYS)}")
        raise LoLDUError(f"{path}: [{concept}] has the unknown key {key}; {perhaps}.")
    if key in _LISTS:
        texts = [value] if isinstance(value, str) else value
        if isinstance(texts, list) and all(isinstance(text, str) for text in texts):
            return tuple(texts)
        raise LoLDUError(f"{path}: [{concept}] {key} is {value!r}; it must be a list of texts.")
    if not isinstance(value, str):
        raise LoLDUError(f"{path}: [{concept}] {key} is {value!r}; it must be a text.")
    return path.parent / value if key in _PATHS else value


def _with(config: Config, name: str, values: dict[str, Any]) -> Config:
    """The run's options, with a concept's own."""

    def section(options: Any, **more: Any) -> Any:  # noqa: ANN401
        own = {field.name for field in fields(options)} & values.keys()
        return replace(options, **{key: values[key] for key in own}, **more)

    return replace(
        config,
        instance=section(config.instance, concepts=None),
        prior=section(config.prior),
        run=section(config.run, output_dir=config.run.output_dir / FOLDER / name),
        scores=section(config.scores),
    )
