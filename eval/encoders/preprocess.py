"""Turn a picture into a network's input, as the published scores define it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torchvision import transforms
from transformers.image_processing_base import ImageProcessingMixin

from loldu.pictures.open import upright

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocess:
    """Picture to tensor: EXIF rotation, RGB, bicubic resize with Pillow, center crop, normalize.

    The shorter side becomes ``resize_px``, or both sides if ``crop_px`` is None.
    """

    resize_px: int
    crop_px: int | None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """Return the network's input for one picture."""
        size = self.resize_px if self.crop_px else (self.resize_px, self.resize_px)
        steps: list[Callable[[Any], Any]] = [
            transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
        ]
        if self.crop_px:
            steps.append(transforms.CenterCrop(self.crop_px))
        steps += [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        pixels: Any = transforms.Compose(steps)(upright(image).convert("RGB"))
        return pixels

    @classmethod
    def from_pretrained(cls, name_or_path: str) -> Preprocess:
        """Read size, mean and standard deviation from ``preprocessor_config.json``.

        Raises:
            OSError: If there is no such file.
        """
        config, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        crop_px = _side(config["crop_size"]) if config.get("do_center_crop") else None
        return cls(
            _side(config["size"]), crop_px, tuple(config["image_mean"]), tuple(config["image_std"])
        )


SQUASHING = Preprocess(224, None, (0.5,) * 3, (0.5,) * 3)
"""The preset published with DINO's weights on the hub, which no published score used."""


def _side(size: int | dict[str, int]) -> int:
    """Return the side of a square size, which config files write in three ways."""
    return size if isinstance(size, int) else size.get("shortest_edge", size.get("height", 0))


def published_dino(image_size: int = 224) -> Preprocess:
    """Return DINO's transform: resize 256, crop 224 (scaled for other sizes), ImageNet statistics.

    Source: DINO's evaluation code; the DreamBooth scores were computed with it.
    """
    return Preprocess(round(image_size * 256 / 224), image_size)


def dino_preprocess(name_or_path: str, image_size: int) -> Preprocess:
    """Return the preprocessing of a transformers folder or hub id, or else the published one.

    The preset published with DINO's own weights is ignored: it squashes the picture to 224 pixels
    and normalizes with 0.5.
    """
    try:
        own = Preprocess.from_pretrained(name_or_path)
    except OSError:
        return published_dino(image_size)
    return published_dino(image_size) if own == SQUASHING else own
