"""Metadata of a result: how it was made, without local paths."""

import re
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline

from loldu import __version__
from loldu.base.families import FAMILIES, family_of, network_of
from loldu.base.record import digest_of_file, public_base
from loldu.options import options
from loldu.prompts import class_after, token_and_class
from trainer.options.config import Config, sections
from trainer.training.checkpoint import Progress

_LIBRARIES = ("torch", "diffusers", "transformers", "peft")


@dataclass(frozen=True)
class Training:
    """Facts about the training of a concept that are not in its options.

    Attributes:
        progress: Steps and seconds.
        parameters: Trained numbers.
        caption: Prompt of the first picture.
        pictures: Pictures of the concept.
        class_pictures: Class pictures.
        scores: Scores by metric, if the concept was scored.
    """

    progress: Progress
    parameters: int
    caption: str
    pictures: int
    class_pictures: int
    scores: dict[str, float] | None = None


def describe(config: Config, training: Training, pipeline: DiffusionPipeline) -> dict[str, Any]:
    """Return the metadata of a concept file: its names, its base, its data and its options.

    There is no date in it, so that the same run gives the same bytes. Unknown values are left out.
    """
    tables = public_sections(config)
    token, class_name = name_of(config)
    metadata = {
        "method": config.adapter.method,
        "token": token,
        "class_name": class_name,
        "instance_prompt": prompt_of(config, training),
        "class_prompt": tables["prior"].pop("class_prompt"),
        "base": {
            **tables.pop("base"),
            "family": family_of(pipeline).name,
            "revision": _revision(config, pipeline),
            "sha256": digest_of_file(config.base),
        },
        "license": license_of(config),
        "pictures": training.pictures,
        "class_pictures": training.class_pictures,
        "steps": training.progress.step,
        "scores": training.scores,
        "versions": {"loldu": __version__, **{name: version(name) for name in _LIBRARIES}},
    }
    for name in ("instance_prompt", "token"):  # at the top level
        tables["instance"].pop(name, None)
    known = options(type(config))
    kept: dict[str, dict[str, Any]] = {}
    for section, table in tables.items():
        own = {name: table[name] for name in table if known[name].publish == "concept"}
        kept |= {section: own} if own else {}
    metadata["base"] = {
        name: value for name, value in metadata["base"].items() if value is not None
    }
    return {**{name: value for name, value in metadata.items() if value is not None}, **kept}


def public_sections(config: Config) -> dict[str, dict[str, Any]]:
    """Return the resolved options without local paths; a local base has only its name."""
    known = options(type(config))
    public = {
        section: {name: table[name] for name in table if known[name].publish != "never"}
        for section, table in sections(config).items()
    }
    return {**public, "base": public_base(config.base)}


def base_name(config: Config) -> str:
    """Return the hub id of the base, or the name of its folder or file."""
    path = Path(config.base.pretrained_model_name_or_path)
    return path.resolve().name if path.exists() else str(path)


def is_on_hub(config: Config) -> bool:
    """Tell whether the base is on the hub."""
    return not Path(config.base.pretrained_model_name_or_path).exists()


def name_of(config: Config) -> tuple[str | None, str | None]:
    """Return the rare token and the class, as given or derived from the prompts."""
    prompt = config.instance.instance_prompt or ""
    if token := config.instance.token or config.instance.placeholder_token:
        return token, class_after(prompt, token) or None
    return token_and_class(prompt, config.prior.class_prompt) or (None, None)


def called_by(config: Config) -> str | None:
    """Return the words that call the concept in pictures of the run; None if it is always on."""
    return None if config.run.always_on else name_of(config)[0]


def prompt_of(config: Config, training: Training) -> str:
    """Return a prompt of the concept."""
    return config.instance.instance_prompt or training.caption


def license_of(config: Config) -> str | None:
    """Return the licence in the options, or else the base's, if it is known."""
    known = {name: each for family in FAMILIES for name, each in family.licenses.items()}
    return config.result.license or (known.get(base_name(config)) if is_on_hub(config) else None)


def _revision(config: Config, pipeline: DiffusionPipeline) -> str | None:
    """Return the base's commit, which the hub's cache names, or else the given revision."""
    place = str(network_of(pipeline).config.get("_name_or_path") or "")
    commit = re.search(r"[/\\]snapshots[/\\]([0-9a-f]{40})(?![0-9a-f])", place)
    return commit[1] if commit else config.base.revision
