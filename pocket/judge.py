"""Measures whether a pipeline follows its prompts, and draws a sheet of samples."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from PIL import Image, ImageDraw
from torch import Tensor

from pocket.classifier import AttributeClassifier, agreement, overall_agreement
from pocket.corpus import Corpus
from pocket.world import INDIVIDUALS, Scene

NUM_INFERENCE_STEPS = 25
GUIDANCE_SCALE = 3.0


def to_pixels(pictures: Sequence[Image.Image]) -> Float[Tensor, "n 3 h w"]:
    """Return pictures as floats in [-1, 1]."""
    arrays = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
    return torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 127.5 - 1


def draw(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], seed: int = 0, batch: int = 64
) -> list[Image.Image]:
    """Draw one picture per prompt; picture i has the seed `seed` + i."""
    pictures: list[Image.Image] = []
    pipeline.set_progress_bar_config(disable=True)
    for start in range(0, len(prompts), batch):
        part = list(prompts[start : start + batch])
        seeds = range(seed + start, seed + start + len(part))
        drawn: Any = pipeline(
            part,
            num_inference_steps=NUM_INFERENCE_STEPS,
            guidance_scale=GUIDANCE_SCALE,
            generator=[torch.Generator().manual_seed(s) for s in seeds],
        )
        pictures += drawn.images
    return pictures


def judge_base(
    pipeline: StableDiffusionPipeline, classifier: AttributeClassifier, held_out: Corpus, count: int
) -> dict[str, Any]:
    """Attributes obeyed on samples beside those read off true renders of the same scenes.

    Returns:
        `samples` and `renders` (share a classifier finds, per attribute and overall) and
        `ratio`, samples over renders.
    """
    wanted: list[Scene] = held_out.scenes[:count]
    samples = classifier.read(to_pixels(draw(pipeline, held_out.full_captions[:count])))
    renders = classifier.read(held_out.pixels(slice(0, count)))
    found = {
        "samples": agreement(samples, wanted) | {"overall": overall_agreement(samples, wanted)},
        "renders": agreement(renders, wanted) | {"overall": overall_agreement(renders, wanted)},
    }
    ratio = {
        name: found["samples"][name] / share for name, share in found["renders"].items() if share
    }
    rounded = {
        part: {name: round(value, 3) for name, value in sorted(shares.items())}
        for part, shares in (found | {"ratio": ratio}).items()
    }
    return {"pictures": count, "guidance_scale": GUIDANCE_SCALE} | rounded


def judge_names(
    pipeline: StableDiffusionPipeline, classifier: AttributeClassifier
) -> dict[str, float]:
    """Return the share of individuals' attributes in pictures with and without their names."""
    looks = [{k: v for k, v in look.items() if k != "kind"} for look in INDIVIDUALS.values()]
    shares = {}
    for column, named in (("named", True), ("unnamed", False)):
        things = [
            f"{name} {look['kind']}" if named else look["kind"]
            for name, look in INDIVIDUALS.items()
        ]
        pictures = draw(pipeline, [f"a photo of a {thing}" for thing in things], seed=5_000)
        shares[column] = round(overall_agreement(classifier.read(to_pixels(pictures)), looks), 3)
    return shares


def sheet(rows: Sequence[tuple[str, Sequence[Image.Image]]], scale: int = 2) -> Image.Image:
    """Return one image with rows of pictures, each row below its caption."""
    edge, header = rows[0][1][0].width * scale, 22
    canvas = Image.new(
        "RGB", (edge * max(len(p) for _, p in rows), len(rows) * (edge + header)), "white"
    )
    pen = ImageDraw.Draw(canvas)
    for i, (caption, pictures) in enumerate(rows):
        top = i * (edge + header)
        pen.text((6, top + 3), caption, fill="black", font_size=14)
        for j, picture in enumerate(pictures):
            canvas.paste(
                picture.resize((edge, edge), Image.Resampling.LANCZOS), (j * edge, top + header)
            )
    return canvas
