"""Generate the planned pictures that are missing; each file records its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from tqdm import tqdm

from eval.config import DrawingConfig
from eval.protocols.prompts import PlannedPicture
from loldu.base.draw import sample_images
from loldu.errors import LoLDUError
from loldu.files import save_png
from loldu.pictures.open import stored_text

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PARAMETERS = "parameters"
LIBRARIES = ("torch", "diffusers", "peft")
"""Libraries whose versions decide a picture, besides its settings."""


def file_digest(path: Path) -> str:
    """Return the first 16 digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def missing_pictures(
    planned: Sequence[PlannedPicture],
    settings: DrawingConfig,
    origin: dict[str, Any],
    *,
    redraw: bool,
    flag: str,
) -> list[PlannedPicture]:
    """Return the pictures that do not exist yet or are to be replaced.

    Args:
        planned: All pictures.
        settings: How to generate them.
        origin: Fingerprints of the base and the concept.
        redraw: Whether pictures with other settings may be replaced.
        flag: Option that sets `redraw`, for the error message.

    Raises:
        LoLDUError: If a file exists with other settings, or is not ours, and may not be replaced.
    """
    missing = []
    for one in planned:
        if not one.path.exists():
            missing.append(one)
        elif (drawn := stored_text(one.path, PARAMETERS)) != _describe(one, settings, origin):
            if not _is_description(drawn):
                raise LoLDUError(
                    f"{one.path} would be replaced, but this command did not draw it; move it "
                    "away, or choose another folder."
                )
            if not redraw:
                raise LoLDUError(
                    f"{one.path} exists with other settings; replace such pictures with {flag}, or "
                    "choose another folder."
                )
            missing.append(one)
    return missing


def draw(
    pipeline: DiffusionPipeline,
    planned: Sequence[PlannedPicture],
    settings: DrawingConfig,
    origin: dict[str, Any],
    *,
    label: str = "drawing",
) -> None:
    """Generate pictures in batches, and save each batch at once with its settings.

    Args:
        pipeline: Pipeline, with its concept loaded.
        planned: Pictures to generate.
        settings: How to generate them.
        origin: Fingerprints of the base and the concept, which each file records.
        label: Label of the progress bar.
    """
    for one in planned:
        one.path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(planned), desc=label, unit="picture", disable=None) as bar:
        for start in range(0, len(planned), settings.batch_size):
            batch = planned[start : start + settings.batch_size]
            images = sample_images(
                pipeline,
                [one.prompt for one in batch],
                [one.seed for one in batch],
                num_inference_steps=settings.num_inference_steps,
                guidance_scale=settings.guidance_scale,
                batch_size=settings.batch_size,
                progress=False,
            )
            for one, image in zip(batch, images, strict=True):
                save_png(image, one.path, _describe(one, settings, origin))
            bar.update(len(batch))


def _describe(one: PlannedPicture, settings: DrawingConfig, origin: dict[str, Any]) -> str:
    """Return everything that decides a picture; batch size and the other seeds do not."""
    elsewhere = ("seeds", "batch_size", "always_on")
    deciding = {name: value for name, value in asdict(settings).items() if name not in elsewhere}
    parts = {"prompt": one.prompt, "seed": one.seed, **deciding, **origin}
    if origin["concept"] is not None:
        parts["always_on"] = settings.always_on
    return json.dumps(parts, sort_keys=True)


def _is_description(drawn: str | None) -> bool:
    """Tell whether the parameters in a picture are those of `_describe`, of any version."""
    try:
        return {"prompt", "seed"} <= json.loads(drawn or "{}").keys()
    except (ValueError, AttributeError):  # A1111 writes other parameters
        return False
