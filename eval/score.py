"""From pictures to scores: features once, then the metrics; and `python -m eval score`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch import Tensor

from eval.config import ScoreConfig, ScoringConfig
from eval.errors import EvalError
from eval.extractors import ImageExtractor, ImageTextExtractor, load_clip, load_dino
from eval.metrics import clip_t, image_similarity, mean_over_subjects
from trainer.files import write_atomically
from trainer.images import load_image
from trainer.instances import SUFFIXES, list_images
from trainer.prompts import without_token


@dataclass(frozen=True)
class Features:
    """What DINO and CLIP see in the same pictures."""

    dino: Float[Tensor, "n dino"]
    clip: Float[Tensor, "n clip"]


@dataclass(frozen=True)
class Extractors:
    """The two models that measure."""

    clip: ImageTextExtractor
    dino: ImageExtractor

    @classmethod
    def load(cls, scoring: ScoringConfig) -> Extractors:
        """Load both on the device asked for.

        Raises:
            EvalError: If one of them has no weights here.
        """
        device = pick_device(scoring.device)
        return cls(load_clip(scoring.clip, device), load_dino(scoring.dino, device))

    def features(self, images: Sequence[Image.Image]) -> Features:
        """Return the features of pictures."""
        return Features(self.dino.encode_images(images), self.clip.encode_images(images))

    def follows(self, features: Features, prompts: Sequence[str]) -> float:
        """Return CLIP-T of pictures and their prompts, one each."""
        return clip_t(features.clip, self.clip.encode_texts(prompts))


def pick_device(device: str | None) -> str:
    """Return the device asked for, or a GPU where there is one."""
    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def likeness(
    generated: Features, real: Features, *, exclude_self: bool = False
) -> dict[str, float]:
    """Return DINO and CLIP-I of generated pictures against real ones."""
    return {
        "dino": image_similarity(generated.dino, real.dino, exclude_self=exclude_self),
        "clip_i": image_similarity(generated.clip, real.clip, exclude_self=exclude_self),
    }


def load_images(folder: Path) -> list[Image.Image]:
    """Return the pictures of a folder in the order of their names."""
    return [load_image(path) for path in list_images(folder)]


def score(config: ScoreConfig) -> None:
    """Score folders, print the table and the JSON, and write the JSON where asked.

    Raises:
        EvalError: If folders, prompts or weights are not as they must be.
    """
    refuse_to_overwrite([config.json] if config.json else [], overwrite=config.scoring.overwrite)
    pairs = _subjects(config.generated, config.real)
    prompts = {name: _prompts(config, generated) for name, (generated, _) in pairs.items()}
    extractors = Extractors.load(config.scoring)
    scores = {
        name: _score_subject(extractors, generated, real, prompts[name])
        for name, (generated, real) in pairs.items()
    }
    metrics = [
        metric
        for metric in ("dino", "clip_i", "clip_t")
        if all(metric in s for s in scores.values())
    ]
    mean = {metric: mean_over_subjects([s[metric]] for s in scores.values()) for metric in metrics}
    result = {
        "scores": mean,
        "subjects": scores,
        "clip": config.scoring.clip,
        "dino": config.scoring.dino,
    }
    text = json.dumps(result, indent=2)
    Console(stderr=True).print(_table(scores, mean))
    Console().print_json(text)
    if config.json:
        write_atomically(config.json, text + "\n")


def refuse_to_overwrite(paths: Sequence[Path], *, overwrite: bool) -> None:
    """Raise if results of an earlier call are there and are not to be replaced.

    Raises:
        EvalError: naming the first such file.
    """
    for path in paths:
        if path.exists() and not overwrite:
            raise EvalError(
                f"{path} is there already: replace it with --overwrite, or name another."
            )


def _subjects(generated: Path, real: Path) -> dict[str, tuple[Path, Path]]:
    """Pair the folders: a folder of pictures is one subject, a folder of folders holds many."""
    entries = sorted(generated.iterdir()) if generated.is_dir() else []
    names = [path.name for path in entries if path.is_dir()]
    if not names or any(path.suffix.lower() in SUFFIXES for path in entries):
        return {generated.name: (generated, real)}
    for name in names:
        if not (real / name).is_dir():
            raise EvalError(
                f"The subject {name} of --generated {generated} has no folder {real / name} of "
                "true pictures; both folders need the same names."
            )
    return {name: (generated / name, real / name) for name in names}


def _prompts(config: ScoreConfig, generated: Path) -> list[str] | None:
    """Return a prompt for each generated picture without the rare token, or None without any."""
    paths = list_images(generated)
    sidecars = [path.with_suffix(".txt") for path in paths]
    if config.prompts:
        if not config.prompts.is_file():
            raise EvalError(f"--prompts {config.prompts} is not a file.")
        prompts = config.prompts.read_text(encoding="utf-8").splitlines()
    elif config.prompt:
        prompts = [config.prompt] * len(paths)
    elif all(path.is_file() for path in sidecars):
        prompts = [path.read_text(encoding="utf-8").strip() for path in sidecars]
    else:
        return None
    if len(prompts) != len(paths):
        raise EvalError(
            f"--prompts {config.prompts} has {len(prompts)} lines for the {len(paths)} pictures of "
            f"{generated}; give a line a picture, in the order of their names."
        )
    return [without_token(prompt, config.token) if config.token else prompt for prompt in prompts]


def _score_subject(
    extractors: Extractors, generated: Path, real: Path, prompts: list[str] | None
) -> dict[str, Any]:
    features = extractors.features(load_images(generated))
    truth = extractors.features(load_images(real))
    scores: dict[str, Any] = {"pictures": len(features.clip), **likeness(features, truth)}
    if prompts is not None:
        scores["clip_t"] = extractors.follows(features, prompts)
    return scores


def _table(scores: dict[str, dict[str, Any]], mean: dict[str, float]) -> Table:
    table = Table("subject", title="mean cosines")
    for metric in mean:
        table.add_column(metric, justify="right")
    for name, subject in scores.items():
        table.add_row(name, *(f"{subject[metric]:.3f}" for metric in mean))
    if len(scores) > 1:
        table.add_section()
        table.add_row("mean", *(f"{value:.3f}" for value in mean.values()))
    return table
