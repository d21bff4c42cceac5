"""Where a concept comes from: its base, its pictures, its name and what training it cost."""

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.config import AdapterConfig
from eval.protocols.prompts import token_and_class
from loldu import read_concept
from loldu.base.config import BaseModelConfig
from loldu.base.record import CONFIG, SUMMARY, base_options
from loldu.errors import LoLDUError


@dataclass(frozen=True)
class Origin:
    """What a report needs to know of a concept beside its weights.

    Attributes:
        base: The options of its base, as `load_pipeline` takes them.
        instance_data_dir: The true pictures.
        token: The rare token it answers to.
        class_name: What kind of thing it is.
        training: What a table needs: sizes, steps and seconds; None for what is not known.
    """

    base: BaseModelConfig
    instance_data_dir: Path
    token: str
    class_name: str
    training: dict[str, int | float | None]


def read_origin(config: AdapterConfig) -> Origin:
    """Read the concept file, and the run's files beside it where it still lies there.

    Flags come first.

    Raises:
        LoLDUError: If there is no such file, or what no flag tells is not told there either.
        ConceptError: If it is not a sound concept.
    """
    if not config.concept.is_file():
        raise LoLDUError(f"--concept {config.concept} is not a file; give the one training wrote.")
    concept = read_concept(config.concept)
    run = _run_config(config.concept.parent / CONFIG)
    base = base_options(concept, config.concept, config.pretrained_model_name_or_path)
    folder = config.real or run.get("instance", {}).get("instance_data_dir")
    if not folder:
        raise LoLDUError(
            f"There is no {CONFIG} beside {config.concept} to tell which pictures it was taught "
            "with; give their folder with --real."
        )
    told = concept.metadata
    token = config.token or told.get("token")
    class_name = config.class_name or told.get("class_name")
    if not (token and class_name):
        prompts = told.get("instance_prompt") or "", told.get("class_prompt") or []
        derived = token_and_class(*prompts)
        token, class_name = token or derived[0], class_name or derived[1]
    return Origin(base, Path(folder), token, class_name, _training(config.concept))


def _run_config(path: Path) -> dict[str, dict[str, Any]]:
    return tomllib.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _training(concept: Path) -> dict[str, int | float | None]:
    path = concept.parent / SUMMARY
    summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = ("trainable_parameters", "train_steps", "train_seconds")
    return {**{name: summary.get(name) for name in names}, "concept_bytes": concept.stat().st_size}
