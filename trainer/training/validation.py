"""Validation pictures: the base's row above the adapter's, always from the same noise."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps

from loldu.base.draw import sample_images
from loldu.errors import LoLDUError
from loldu.files import png_bytes
from loldu.pictures.grid import GAP_PX, picture_grid
from loldu.pictures.open import load_image, stored_text
from trainer.methods.trained import Trained
from trainer.options.config import Config
from trainer.results.manifest import Manifest
from trainer.results.metadata import called_by
from trainer.training.cache import on_device
from trainer.training.scoring_plan import PromptSeed, with_seeds

logger = logging.getLogger(__name__)

VALIDATION, PICTURES, PROGRESS = "validation", "pictures", "progress.png"
BASE = "base"
_MIN_CELL_PX, _STRIP_CELL_PX, _STRIP_ROWS = 160, 160, 20

Row = tuple[str, list[Image.Image]]


class Validation:
    """Draws the validation prompts with the adapter as it is and, once, without it.

    `validation/000200.png` shows step 200 below the base, `validation/progress.png` all steps so
    far, and `validation/pictures/` has every picture by itself, with its prompt and seed inside.
    """

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        trained: Trained,
        concept: str,
        config: Config,
        device: torch.device,
    ) -> None:
        """Prepare to draw one concept of a run.

        Without validation prompts, a requested sample shows the instance prompt.

        Args:
            pipeline: The base, with what is trained on it.
            trained: What is trained.
            concept: Name of the concept.
            config: Options of the concept.
            device: Where to draw.
        """
        run, prompt = config.run, config.instance.instance_prompt
        self._pipeline = pipeline
        self._trained = trained
        self._concept = concept
        self._device = device
        self._words = called_by(config)
        self._prompts = run.validation_prompt or ((prompt,) if prompt else ())
        self._seeds = [seed for _, seed in with_seeds(self._prompts, config)]
        self._resolution = config.instance.resolution
        self._num_inference_steps = run.num_inference_steps
        self._guidance_scale = run.guidance_scale
        self._folder = run.output_dir / VALIDATION
        self._manifest = Manifest(run.output_dir)
        self.drawn: dict[PromptSeed, Image.Image] = {}
        """The adapter's pictures on the last sheet, for the scores; empty at step 0."""

    def draw(self, step: int) -> Image.Image | None:
        """Draw, save and return the sheet of a step; at step 0 it has only the base's row.

        If training overwrites the base, its row is on later sheets only if step 0 was drawn.
        """
        if not self._prompts:
            logger.warning("There is nothing to draw: give --validation_prompt.")
            return None
        base = self._kept(BASE)
        rows: list[Row] = []
        with on_device(self._pipeline, self._device):
            if base is None and (step == 0 or self._trained.gives_base_back):
                with self._trained.off():
                    base = self._draw(BASE)
            if base is not None:
                rows.append((BASE, base))
            if step > 0:
                with self._trained.drawing(self._pipeline, self._concept, self._words):
                    images = self._draw(f"{step:06d}")
                rows.append((f"step {step}", images))
                self.drawn = dict(
                    zip(zip(self._prompts, self._seeds, strict=True), images, strict=True)
                )
        drawn = sheet(rows, self._prompts, _cell_px(self._resolution))
        path = self._folder / f"{step:06d}.png"
        self._manifest.write(path, png_bytes(drawn))
        rows = rows[: base is not None] + self._rows_until(step)
        strip = sheet(rows, self._prompts, _STRIP_CELL_PX)
        self._manifest.write(self._folder / PROGRESS, png_bytes(strip))
        logger.info("Validation pictures: %s", path)
        return drawn

    def _draw(self, name: str) -> list[Image.Image]:
        images = sample_images(
            self._pipeline,
            self._prompts,
            self._seeds,
            num_inference_steps=self._num_inference_steps,
            guidance_scale=self._guidance_scale,
            resolution=self._resolution,
            progress=False,
        )
        for index, image in enumerate(images):
            content = png_bytes(image, self._parameters(index))
            self._manifest.write(self._path(name, index), content)
        return images

    def _kept(self, name: str) -> list[Image.Image] | None:
        """Return pictures drawn earlier, if they have the same prompts, seeds and settings."""
        images: list[Image.Image] = []
        for index in range(len(self._prompts)):
            path = self._path(name, index)
            if stored_text(path, "parameters") != self._parameters(index):
                return None
            try:
                images.append(load_image(path))
            except LoLDUError:  # cut short
                return None
        return images

    def _rows_until(self, step: int) -> list[Row]:
        """Return the rows of earlier steps, evenly thinned out if there are many."""
        names = [path.stem[:-3] for path in (self._folder / PICTURES).glob("*-00.png")]
        steps = sorted(int(name) for name in names if name.isdecimal() and int(name) <= step)
        thinned = steps[:: -max(1, math.ceil(len(steps) / _STRIP_ROWS))][::-1]
        kept = [(earlier, self._kept(f"{earlier:06d}")) for earlier in thinned]
        return [(f"step {earlier}", images) for earlier, images in kept if images is not None]

    def _path(self, name: str, index: int) -> Path:
        return self._folder / PICTURES / f"{name}-{index:02d}.png"

    def _parameters(self, index: int) -> str:
        """Return everything that decides a picture, in the format of A1111's PNG text."""
        return (
            f"{self._prompts[index]}\nSteps: {self._num_inference_steps}, CFG scale: "
            f"{self._guidance_scale:g}, Seed: {self._seeds[index]}, Size: "
            f"{self._resolution}x{self._resolution}"
        )


def sheet(rows: Sequence[Row], prompts: Sequence[str], cell_px: int) -> Image.Image:
    """Return a page of pictures: row names on the left, prompts above the columns."""
    return ImageOps.expand(picture_grid(rows, prompts, cell_px=cell_px), GAP_PX, "white")


def _cell_px(resolution: int) -> int:
    """Return the side of a cell; tiny pictures are enlarged by a whole factor, for the captions."""
    return resolution * math.ceil(_MIN_CELL_PX / resolution)
