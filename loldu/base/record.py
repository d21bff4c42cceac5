"""Write and read base-model options in concept files and runs."""

import hashlib
import tomllib
from dataclasses import asdict, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from loldu.base.config import BaseModelConfig
from loldu.concept.format import Concept
from loldu.options import options

CONFIG, SUMMARY = "config.toml", "summary.json"
"""Options and summary of a run: files next to the concept."""

_NAME = "pretrained_model_name_or_path"
_PLACES = {each.name for each in options(BaseModelConfig).values() if each.publish == "name"}
_READ_AS = ("prediction_type", "clip_skip")
"""Options that say how to read a base, wherever it is."""


def public_base(base: BaseModelConfig) -> dict[str, Any]:
    """Return a base's options without local paths: only the last part of a path stays."""
    public = {name: value for name, value in asdict(base).items() if value is not None}
    for name in _PLACES:
        if name in public and Path(public[name]).exists():
            public[name] = Path(public[name]).resolve().name
    return public


@lru_cache(maxsize=1)  # every checkpoint records it, and the file has gigabytes
def digest_of_file(base: BaseModelConfig) -> str | None:
    """Return the SHA-256 of a single-file base, by which model sites list it; None for others."""
    path = Path(base.pretrained_model_name_or_path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_options(concept: Concept, path: Path, place: str | None = None) -> BaseModelConfig:
    """Return the options with which `load_pipeline` loads a concept's base as its run did.

    The run's config.toml has them, if it is next to the concept file. The file itself has those
    that do not depend on the computer.

    Args:
        concept: The content of the concept file.
        path: The concept file.
        place: Folder, file or hub id of the base now, if it has moved.
    """
    beside = path.with_name(CONFIG)
    run = tomllib.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    options: dict[str, Any] = run.get("base") or {**_portable(concept), _NAME: concept.base}
    if place not in (None, options[_NAME]):
        options = {_NAME: place, **{name: options[name] for name in _READ_AS if name in options}}
    known = {option.name for option in fields(BaseModelConfig)}
    return BaseModelConfig(**{name: options[name] for name in known & options.keys()})


def _portable(concept: Concept) -> dict[str, Any]:
    # A name without a slash is a local file or folder of whoever trained the concept.
    options = concept.metadata.get("base", {})
    return {name: value for name, value in options.items() if name not in _PLACES or "/" in value}
