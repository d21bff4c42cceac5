"""Where a concept comes from: its base, its pictures, its name and what training it cost."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.config import ReportConfig
from eval.errors import EvalError
from eval.prompts import token_and_class
from loldu import read_concept
from trainer.records import SUMMARY


@dataclass(frozen=True)
class Origin:
    """What a report needs to know of a concept beside its weights."""

    base: str
    instance_data_dir: Path
    token: str
    class_name: str
    training: dict[str, int | float | None]


def read_origin(config: ReportConfig) -> Origin:
    """Read the concept file and the summary beside it; flags come first.

    Raises:
        EvalError: If there is no such file, or it does not tell what no flag tells either.
    """
    if not config.concept.is_file():
        raise EvalError(f"--concept {config.concept} is not a file; give the one training wrote.")
    metadata = read_concept(config.concept).metadata
    run: dict[str, dict[str, Any]] = json.loads(metadata.get("config", "{}"))
    instance = run.get("instance", {})
    base = config.pretrained_model_name_or_path or metadata.get("base")
    folder = config.real or instance.get("instance_data_dir")
    for flag, value in (("--pretrained_model_name_or_path", base), ("--real", folder)):
        if not value:
            raise EvalError(
                f"{config.concept} does not tell its training's {flag}; give that flag."
            )
    token, class_name = config.token, config.class_name
    if not (token and class_name):
        class_prompts = run.get("prior", {}).get("class_prompt", [])
        token, class_name = token_and_class(instance.get("instance_prompt", ""), class_prompts)
    return Origin(str(base), Path(folder), token, class_name, _training(config.concept))


def _training(concept: Path) -> dict[str, int | float | None]:
    """Return what `summary.json` says, which is None for each where the file has moved alone."""
    path = concept.parent / SUMMARY
    summary = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = ("trainable_parameters", "train_steps", "train_seconds")
    return {"concept_bytes": concept.stat().st_size, **{name: summary.get(name) for name in names}}
