"""Pictures that a score needs: drawn where they are missing, each known by its settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from eval.config import DrawingConfig
from loldu.base.draw import sample_images
from loldu.errors import LoLDUError
from loldu.files import save_png

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
PARAMETERS = "parameters"
LIBRARIES = ("torch", "diffusers", "peft")
"""What decides a picture beside all that is asked for."""


@dataclass(frozen=True)
class Wanted:
    """A picture to be drawn: where, of what and from which noise."""

    path: Path
    prompt: str
    seed: int


def wanted_pictures(folder: Path, prompts: Sequence[str], seeds: Sequence[int]) -> list[Wanted]:
    """Every prompt from every seed, as `PROMPT-SEED.png`, seed by seed."""
    return [
        Wanted(folder / f"{number:03}-{seed}.png", prompt, seed)
        for seed in seeds
        for number, prompt in enumerate(prompts)
    ]


def file_digest(path: Path) -> str:
    """What tells a file's content from another's."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def still_missing(
    wanted: Sequence[Wanted],
    settings: DrawingConfig,
    made_with: dict[str, Any],
    *,
    redraw: bool,
    flag: str,
) -> list[Wanted]:
    """Those that are not there yet, or that are to be drawn anew.

    Args:
        wanted: All of them.
        settings: How they are to be drawn.
        made_with: What else decides them: the base and the concept.
        redraw: Whether pictures drawn in another way may be replaced.
        flag: The option that says so.

    Raises:
        LoLDUError: If a file that is not to be replaced was drawn in another way or is not ours.
    """
    missing = []
    for one in wanted:
        if not one.path.exists():
            missing.append(one)
        elif _parameters(one.path) != _describe(one, settings, made_with):
            if not redraw:
                raise LoLDUError(
                    f"{one.path} is there already and was not drawn like this; replace such "
                    f"pictures with {flag}, or name another folder."
                )
            missing.append(one)
    return missing


def draw(
    pipeline: DiffusionPipeline,
    wanted: Sequence[Wanted],
    settings: DrawingConfig,
    made_with: dict[str, Any],
    *,
    label: str = "drawing",
) -> None:
    """Draw pictures batch by batch and keep each at once, with how it was made.

    Args:
        pipeline: What draws, with its concept loaded.
        wanted: Which.
        settings: How.
        made_with: The base and the concept, for the record.
        label: Before the progress bar.
    """
    for one in wanted:
        one.path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(wanted), desc=label, unit="picture", disable=None) as bar:
        for start in range(0, len(wanted), settings.batch_size):
            batch = wanted[start : start + settings.batch_size]
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
                save_png(image, one.path, _describe(one, settings, made_with))
            bar.update(len(batch))


def _describe(one: Wanted, settings: DrawingConfig, made_with: dict[str, Any]) -> str:
    """All that decides a picture; the batch does not, and the other seeds do not."""
    deciding = {k: v for k, v in asdict(settings).items() if k not in ("seeds", "batch_size")}
    told = {"prompt": one.prompt, "seed": one.seed, **deciding, **made_with}
    return json.dumps(told, sort_keys=True)


def _parameters(path: Path) -> str | None:
    try:
        with Image.open(path) as image:
            return image.info.get(PARAMETERS)
    except OSError:  # half a picture cannot be, but somebody's own file may be anything
        return None
