"""Class pictures for prior preservation: brought by the person, or drawn once with the base."""

import hashlib
import json
import logging
from pathlib import Path

from diffusers import StableDiffusionPipeline
from tqdm import tqdm

from trainer.base import fingerprint
from trainer.config import PriorConfig
from trainer.errors import TrainerError
from trainer.files import save_png, write_atomically
from trainer.instances import SUFFIXES, CaptionedImage, list_images, read_captions
from trainer.sampling import sample_images

logger = logging.getLogger(__name__)

METADATA = "metadata.jsonl"
BATCH_SIZE = 8


def class_images(
    pipeline: StableDiffusionPipeline,
    prior: PriorConfig,
    output_dir: Path,
    *,
    resolution: int,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float,
) -> list[CaptionedImage]:
    """The class pictures and their prompts, generating those that are missing.

    A `class_data_dir` with pictures is the person's own and used as it is. Otherwise picture i is
    drawn with the i-th class prompt (in turn) and seed + i, in a subfolder named by a digest of
    everything that decides it, so that pictures of another base or prompt are never mistaken for
    these, an interrupted run draws only the rest, and later runs draw nothing.

    Raises:
        TrainerError: when the person's pictures have no captions.
    """
    own = prior.class_data_dir
    if own is not None and own.is_dir() and _has_images(own):
        prompt = prior.class_prompt[0] if prior.class_prompt else None
        return read_captions(list_images(own), prompt, "--class_prompt")
    if not prior.class_prompt:
        raise TrainerError(
            f"--class_data_dir {own} has no pictures; put some there, or give --class_prompt to "
            "have them drawn."
        )
    captions = [
        prior.class_prompt[index % len(prior.class_prompt)]
        for index in range(prior.num_class_images)
    ]
    recipe = {
        "base": fingerprint(pipeline),
        "prompts": prior.class_prompt,
        "noise_scheduler": pipeline.scheduler.config.get("_class_name", ""),
        "resolution": resolution,
        "seed": seed,
        "num_inference_steps": num_inference_steps,
        "guidance_scale": guidance_scale,
    }
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:12]
    folder = (own or output_dir / "class_images") / digest
    folder.mkdir(parents=True, exist_ok=True)
    images = [
        CaptionedImage(folder / f"{index:05d}.png", caption)
        for index, caption in enumerate(captions)
    ]
    missing = [index for index, image in enumerate(images) if not image.path.exists()]
    if missing:
        logger.info("Drawing %d class pictures into %s", len(missing), folder)
    for start in tqdm(
        range(0, len(missing), BATCH_SIZE), desc="class pictures", disable=not missing
    ):
        batch = missing[start : start + BATCH_SIZE]
        drawn = sample_images(
            pipeline,
            [captions[index] for index in batch],
            [seed + index for index in batch],
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            batch_size=BATCH_SIZE,
            resolution=resolution,
            progress=False,
        )
        for index, image in zip(batch, drawn, strict=True):
            save_png(image, images[index].path)
        rows = [
            {"file_name": image.path.name, "text": image.caption, "seed": seed + index}
            for index, image in enumerate(images)
            if image.path.exists()
        ]
        write_atomically(folder / METADATA, "".join(json.dumps(row) + "\n" for row in rows))
    return images


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in SUFFIXES for path in folder.iterdir())
