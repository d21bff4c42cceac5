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
from pocket.discriminator import tell_apart
from pocket.patterns import counted_right
from pocket.vae import edge_strength, reconstruct
from pocket.world import INDIVIDUALS, Scene, as_seen

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
        `samples` and `renders` (share a classifier finds, per attribute and overall), `ratio`,
        samples over renders, and `patterns`, the share with a true number of dots or stripes.
    """
    wanted: list[Scene] = held_out.scenes[:count]
    pictures = draw(pipeline, held_out.full_captions[:count])
    found = _obeyed(classifier, wanted, to_pixels(pictures), held_out.pixels(slice(0, count)))
    patterns = _rounded(counted_right(pictures, wanted))
    settings = {"pictures": count, "guidance_scale": GUIDANCE_SCALE}
    return settings | found | {"patterns": patterns}


def _rounded(shares: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in sorted(shares.items())}


def _obeyed(
    classifier: AttributeClassifier, wanted: Sequence[Scene], samples: Tensor, renders: Tensor
) -> dict[str, dict[str, float]]:
    """Return the shares of attributes that a classifier finds in `samples` and `renders`."""
    readable = [
        {name: value for name, value in as_seen(scene).items() if name in classifier.heads}
        for scene in wanted
    ]
    found = {}
    for name, pixels in (("samples", samples), ("renders", renders)):
        read = [scene for part in pixels.split(64) for scene in classifier.read(part)]
        overall = {"overall": overall_agreement(read, readable)}
        found[name] = agreement(read, readable) | overall
    ratio = {
        name: found["samples"][name] / share for name, share in found["renders"].items() if share
    }
    return {part: _rounded(shares) for part, shares in (found | {"ratio": ratio}).items()}


def judge_closely(
    pipeline: StableDiffusionPipeline, classifier: AttributeClassifier, one: Corpus, two: Corpus
) -> dict[str, Any]:
    """Measure a base against the VAE's reconstructions of true renders of the same scenes.

    Args:
        pipeline: The base.
        classifier: Reader of attributes.
        one: Held-out scenes of one thing. The network that tells samples from reconstructions
            trains on eight ninths of them.
        two: Held-out scenes of two things.

    Returns:
        `attributes` and `two_things` (`samples`, `renders`, i.e. reconstructions, and `ratio`),
        `patterns` and `edges` of both, `told_apart`, `individuals`.
    """
    samples, blurred = _sampled(pipeline, one), _reconstructed(pipeline, one)
    counted = {
        name: _rounded(counted_right([to_picture(x) for x in pixels], one.scenes))
        for name, pixels in (("samples", samples), ("renders", blurred))
    }
    edges = {"samples": edge_strength(samples), "renders": edge_strength(blurred)}
    edges["ratio"] = edges["samples"] / edges["renders"]
    shown = _obeyed(classifier, two.scenes, _sampled(pipeline, two), _reconstructed(pipeline, two))
    return {
        "pictures": len(one),
        "guidance_scale": GUIDANCE_SCALE,
        "attributes": _obeyed(classifier, one.scenes, samples, blurred),
        "two_things": shown,
        "patterns": counted,
        "edges": {name: round(value, 4) for name, value in edges.items()},
        "told_apart": tell_apart(samples, blurred),
        "individuals": judge_names(pipeline, classifier),
    }


def _sampled(pipeline: StableDiffusionPipeline, corpus: Corpus) -> Float[Tensor, "n 3 h w"]:
    return to_pixels(draw(pipeline, corpus.full_captions))


def _reconstructed(pipeline: StableDiffusionPipeline, corpus: Corpus) -> Float[Tensor, "n 3 h w"]:
    """Return reconstructions, rounded to 8 bits as samples are."""
    parts = [
        reconstruct(pipeline.vae, corpus.pixels(slice(i, i + 64)).to(pipeline.device)).cpu()
        for i in range(0, len(corpus), 64)
    ]
    return to_pixels([to_picture(x) for x in torch.cat(parts)])


def to_picture(pixels: Float[Tensor, "3 h w"]) -> Image.Image:
    """Return a picture of values in [-1, 1]."""
    levels = ((pixels + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


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
