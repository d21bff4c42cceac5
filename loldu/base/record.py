"""What a run tells of its base, and how that is read back."""

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
"""A run's options and its summary, files beside the concept."""

_NAME = "pretrained_model_name_or_path"
_PLACES = {each.name for each in options(BaseModelConfig).values() if each.publish == "name"}
_READ_AS = ("prediction_type", "clip_skip")
"""How a base is to be read, wherever it lies."""


def public_base(base: BaseModelConfig) -> dict[str, Any]:
    """The options of a base for others to read: of a place here only the last name is told."""
    told = {name: value for name, value in asdict(base).items() if value is not None}
    for name in _PLACES:
        if name in told and Path(told[name]).exists():
            told[name] = Path(told[name]).resolve().name
    return told


@lru_cache(maxsize=1)  # every checkpoint tells it, and the file is of gigabytes
def digest_of_file(base: BaseModelConfig) -> str | None:
    """The SHA-256 of a base that is a single file, by which model sites list and find it."""
    path = Path(base.pretrained_model_name_or_path)
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def base_options(concept: Concept, path: Path, place: str | None = None) -> BaseModelConfig:
    """The options with which `load_pipeline` loads the base of a concept as its run did.

    They are in the run's config.toml while the concept file lies beside it, and in the file itself
    as far as they are the same for everyone.

    Args:
        concept: what was read of the concept file.
        path: where it lies.
        place: where the base is now, if that is known better.
    """
    beside = path.with_name(CONFIG)
    run = tomllib.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else {}
    told = run.get("base") or {**_the_same_for_everyone(concept), _NAME: concept.base}
    if place not in (None, told[_NAME]):
        told = {_NAME: place, **{name: told[name] for name in _READ_AS if name in told}}
    known = {option.name for option in fields(BaseModelConfig)}
    return BaseModelConfig(**{name: told[name] for name in known & told.keys()})


def _the_same_for_everyone(concept: Concept) -> dict[str, Any]:
    # A place without a slash is on the disk of whoever trained the concept.
    told = concept.metadata.get("base", {})
    return {name: value for name, value in told.items() if name not in _PLACES or "/" in value}
