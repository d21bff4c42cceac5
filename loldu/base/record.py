"""Write and read base-model options in concept files and runs."""

# Values of TOML have any type.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
import logging
import re
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

from loldu.base.config import BaseModelConfig
from loldu.concept.format import Concept
from loldu.concept.metadata import base_of, shown
from loldu.errors import LoLDUError
from loldu.files import read_toml
from loldu.options import options, typed_values

logger = logging.getLogger(__name__)

CONFIG, SUMMARY = "config.toml", "summary.json"
"""Options and summary of a run: files next to the concept."""

_NAME = "pretrained_model_name_or_path"
_PLACES = {each.name for each in options(BaseModelConfig).values() if each.publish == "name"}
_READ_AS = ("prediction_type", "clip_skip", "prompt_chunks")
"""Options that say how to read a base, wherever it is."""
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


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


def base_options(
    concept: Concept, path: Path, place: str | None = None, *, trusted: bool = False
) -> BaseModelConfig:
    """Return the options with which `load_pipeline` loads a concept's base as its run did.

    The run's config.toml has them, if it is next to the concept file. A concept file alone may come
    from anybody, so it only says how to read the base: it names nothing to load.

    Args:
        concept: The content of the concept file.
        path: The concept file.
        place: Folder, file or hub id of the base now, if it has moved, or if a file alone has it.
        trusted: Whether the person wants the base, revision and VAE that a file alone names.

    Raises:
        LoLDUError: If config.toml is damaged, or nobody says where the base is.
    """
    beside = path.with_name(CONFIG)
    recorded = _of_run(beside) if beside.is_file() else {}
    if _NAME in recorded:
        if place in (None, recorded[_NAME]):
            return BaseModelConfig(**recorded)
        there: dict[str, Any] = {n: recorded[n] for n in _READ_AS if n in recorded}
        there[_NAME] = place
        return BaseModelConfig(**there)
    if trusted:
        return _as_claimed(concept, path, place)
    if place is None:
        raise LoLDUError(
            f"{path} names the base {shown(concept.base) or 'unknown'}, but a file may say "
            "anything: give your base with --pretrained_model_name_or_path, or load what the file "
            "names with --trust_concept."
        )
    claimed = base_of(concept.metadata)
    if vae := claimed.get("vae"):
        logger.warning(
            "%s was trained with the VAE %s, which is not loaded: the base's own draws instead.",
            path.name,
            shown(vae),
        )
    return BaseModelConfig(place, **read_as(concept))


def read_as(concept: Concept) -> dict[str, Any]:
    """Return the options of a concept file that say how to read a base, wherever it is."""
    claimed = base_of(concept.metadata)
    return {name: claimed[name] for name in _READ_AS if claimed.get(name) is not None}


def _of_run(config: Path) -> dict[str, Any]:
    """Return the base options of a run's config.toml that this version knows.

    Raises:
        LoLDUError: If the file is damaged.
    """
    table = read_toml(config, "The options of the run").get("base", {})
    if not isinstance(table, dict):
        raise LoLDUError(f"{config} has a base that is not a table; restore the file or remove it.")
    known = options(BaseModelConfig)
    ours = {name: table[name] for name in known if name in table}
    return typed_values(ours, known, str(config))


def _as_claimed(concept: Concept, path: Path, place: str | None) -> BaseModelConfig:
    """Return the base options that a file alone names, at the base's place now.

    Raises:
        LoLDUError: If the base is not on the Hub.
    """
    if place not in (None, concept.base):
        return BaseModelConfig(place, **read_as(concept))
    if not _HUB_ID.fullmatch(concept.base):
        raise LoLDUError(
            f"{path} names the base {shown(concept.base) or 'unknown'}, which is not a hub id: "
            "give your base with --pretrained_model_name_or_path."
        )
    # A name without a slash is a local file or folder of whoever trained the concept.
    claimed: dict[str, Any] = {
        name: value
        for name, value in base_of(concept.metadata).items()
        if name in options(BaseModelConfig)
        and value is not None
        and (name not in _PLACES or _HUB_ID.fullmatch(value))
    }
    claimed[_NAME] = concept.base
    return BaseModelConfig(**claimed)
