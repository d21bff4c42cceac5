"""Read what a concept's training recorded: its base, pictures, token, class and cost."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.config import AdapterConfig
from eval.protocols.prompts import token_and_class
from loldu import read_concept
from loldu.base.config import BaseModelConfig
from loldu.base.record import CONFIG, SUMMARY, base_options
from loldu.errors import LoLDUError
from loldu.files import read_toml

_MEASURED = ("trainable_parameters", "train_steps", "train_seconds")
"""Numbers of a run's summary that the report shows."""


@dataclass(frozen=True)
class ConceptRun:
    """The run behind a concept: base, pictures, names and training costs.

    Attributes:
        base: Options of its base model.
        instance_data_dir: Folder of real pictures.
        token: Rare token.
        class_name: Class word.
        training: Sizes, steps and seconds, for the report; None for unknown values.
    """

    base: BaseModelConfig
    instance_data_dir: Path
    token: str
    class_name: str
    training: dict[str, int | float | None]


def read_concept_run(config: AdapterConfig) -> ConceptRun:
    """Read the concept file, and the files of its run if they are still beside it.

    The options win over the files.

    Raises:
        LoLDUError: If there is no such file, or a value is neither an option nor recorded.
        ConceptError: If it is not a valid concept file.
    """
    if not config.concept.is_file():
        raise LoLDUError(
            f"--concept {config.concept} is not a file; give the concept file that training wrote."
        )
    concept = read_concept(config.concept)
    folder = config.real or _pictures_of_run(config.concept.parent / CONFIG)
    if not folder:
        raise LoLDUError(
            f"{config.concept} has no {CONFIG} beside it, which names the training pictures; give "
            "a folder of real pictures with --real."
        )
    place, trusted = config.pretrained_model_name_or_path, config.trust_concept
    base = base_options(concept, config.concept, place, trusted=trusted)
    metadata = concept.metadata
    token = config.token or metadata.get("token")
    class_name = config.class_name or metadata.get("class_name")
    if not (token and class_name):
        prompts = metadata.get("instance_prompt") or "", metadata.get("class_prompt") or []
        derived = token_and_class(*prompts)
        token, class_name = token or derived[0], class_name or derived[1]
    return ConceptRun(base, Path(folder), token, class_name, _training(config.concept))


def _pictures_of_run(path: Path) -> str | None:
    """Return the folder of training pictures that a run's config.toml names."""
    run = read_toml(path, "The options of the run") if path.is_file() else {}
    instance = run.get("instance")
    folder = instance.get("instance_data_dir") if isinstance(instance, dict) else None
    return folder if isinstance(folder, str) else None


def _training(concept: Path) -> dict[str, int | float | None]:
    """Return the size of the concept file, and the numbers of its run's summary.

    Raises:
        LoLDUError: If the summary is damaged.
    """
    path = concept.parent / SUMMARY
    try:
        summary: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        recorded = {name: summary.get(name) for name in _MEASURED}
    except (ValueError, AttributeError, RecursionError) as error:
        raise LoLDUError(f"{path} is damaged; restore it or remove it.") from error
    numbers = {n: v for n, v in recorded.items() if type(v) in (int, float) and math.isfinite(v)}
    return {
        **{name: numbers.get(name) for name in _MEASURED},
        "concept_bytes": concept.stat().st_size,
    }
