"""Class pictures for prior preservation: the person's own, or drawn once with the base."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image
from tqdm import tqdm

from loldu.base.draw import sample_images
from loldu.errors import LoLDUError
from loldu.files import png_bytes, write_atomically
from loldu.pictures.captions import METADATA
from loldu.pictures.folder import CaptionedImage
from loldu.prompts import class_after, without_token
from trainer.options.config import Config, PriorConfig
from trainer.results.manifest import OWN
from trainer.results.metadata import name_of
from trainer.training.instances import own_class_images
from trainer.training.stages import CLASS_PICTURES, announce

logger = logging.getLogger(__name__)

BATCH_SIZE = 8


def class_images(
    pipeline: DiffusionPipeline,
    prior: PriorConfig,
    output_dir: Path,
    *,
    base: str,
    resolution: int,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float,
) -> list[CaptionedImage]:
    """Return the class pictures with their prompts; draw those that are missing.

    Pictures in `class_data_dir` are the person's own and used as they are. Otherwise picture i is
    drawn with the i-th class prompt (in turn) and seed + i, into a subfolder whose name is a digest
    of everything that decides the pictures. So pictures of another base or prompt are never
    reused, an interrupted run draws only the rest, and later runs draw nothing.

    Raises:
        LoLDUError: If the person's pictures have no captions, or there is nothing to draw.
    """
    own = prior.class_data_dir
    if images := own_class_images(prior):
        _explain_few(images, prior)
        return images
    if not prior.class_prompt:
        raise LoLDUError(
            f"--class_data_dir {own} has no pictures; put some there, or give --class_prompt to "
            "draw them."
        )
    recipe = {
        "base": base,
        "prompts": prior.class_prompt,
        "noise_scheduler": pipeline.scheduler.to_json_string(),
        "resolution": resolution,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    folder = (own or output_dir / "class_images") / digest
    folder.mkdir(parents=True, exist_ok=True)
    images = [
        CaptionedImage(
            folder / f"{index:05d}.png", prior.class_prompt[index % len(prior.class_prompt)]
        )
        for index in range(prior.num_class_images)
    ]
    draw = partial(
        sample_images,
        pipeline,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        batch_size=BATCH_SIZE,
        resolution=resolution,
        progress=False,
    )
    _draw_missing(draw, images, seed, None if own else output_dir / OWN)
    return images


def own_pictures(pictures: Sequence[CaptionedImage], config: Config) -> list[CaptionedImage]:
    """Return the concept's own pictures as class pictures: without masks, and without its words.

    A caption that lacks the token says the same with and without it, so its picture is left out.

    Raises:
        LoLDUError: If no token is known, or no caption has it.
    """
    token, _ = name_of(config)
    if token is None:
        raise LoLDUError(
            "--class_pictures concept cannot derive the rare token from the prompts; give it with "
            "--token, such as --token sks."
        )
    plain = [
        replace(picture, caption=without_token(picture.caption, token), mask=None)
        for picture in pictures
        if class_after(picture.caption, token) is not None
    ]
    if not plain:
        raise LoLDUError(
            f"--class_pictures concept needs captions with the token {token}; no caption has it."
        )
    return plain


def _explain_few(images: list[CaptionedImage], prior: PriorConfig) -> None:
    """Log what it means that there are fewer class pictures than asked for."""
    if len(images) < prior.num_class_images:
        logger.info(
            "--class_data_dir %s has %d pictures, fewer than --num_class_images %d: each is used "
            "more often, and none is drawn.",
            *(prior.class_data_dir, len(images), prior.num_class_images),
        )


def _draw_missing(
    draw: Callable[[list[str], list[int]], list[Image.Image]],
    images: list[CaptionedImage],
    seed: int,
    drafts: Path | None,
) -> None:
    """Draw the batches that lack a picture; batches are fixed, so that pictures never change."""
    batches = [range(len(images))[at : at + BATCH_SIZE] for at in range(0, len(images), BATCH_SIZE)]
    lacking = [batch for batch in batches if not all(images[i].path.exists() for i in batch)]
    if not lacking:
        return
    folder = images[0].path.parent
    logger.info("Drawing class pictures into %s", folder)
    done = len(images) - sum(map(len, lacking))
    bar = tqdm(lacking, desc="class pictures", unit="batch", disable=None)
    for batch in bar:
        if bar.disable:  # there is no terminal
            announce(CLASS_PICTURES, done, len(images))
        done += len(batch)
        drawn = draw([images[index].caption for index in batch], [seed + index for index in batch])
        for index, image in zip(batch, drawn, strict=True):
            if not images[index].path.exists():
                write_atomically(images[index].path, png_bytes(image), drafts)
        rows = [
            {"file_name": image.path.name, "text": image.caption, "seed": seed + index}
            for index, image in enumerate(images)
            if image.path.exists()
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        write_atomically(folder / METADATA, lines, drafts)
