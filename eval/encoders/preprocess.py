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
BICUBIC = Image.Resampling.BICUBIC.value
FILTERS = {
    Image.Resampling.BILINEAR.value: transforms.InterpolationMode.BILINEAR,
    BICUBIC: transforms.InterpolationMode.BICUBIC,
    Image.Resampling.LANCZOS.value: transforms.InterpolationMode.LANCZOS,
}
"""Filters of image processors by their number in Pillow."""


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
        steps: list[Callable[[Any], Any]] = [transforms.Resize(size, self._filter())]
        if self.crop_px:
            steps.append(self._crop)
        steps += [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        pixels: Any = transforms.Compose(steps)(upright(image).convert("RGB"))
        return pixels

    def _filter(self) -> transforms.InterpolationMode:
        return transforms.InterpolationMode.BICUBIC

    def _crop(self, image: Image.Image) -> Image.Image:
        return transforms.CenterCrop(self.crop_px)(image)

    @classmethod
    def from_pretrained(cls, name_or_path: str) -> Preprocess:
        """Read the image processor of a transformers folder or hub id.

        Raises:
            OSError: If there is no such file.
        """
        config, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        crop_px = _side(config["crop_size"]) if config.get("do_center_crop") else None
        mean, std = tuple(config["image_mean"]), tuple(config["image_std"])
        resample = config.get("resample", BICUBIC)
        if crop_px is None and resample == BICUBIC:
            return cls(_side(config["size"]), None, mean, std)
        return TransformersPreprocess(_side(config["size"]), crop_px, mean, std, resample)


@dataclass(frozen=True)
class TransformersPreprocess(Preprocess):
    """The steps of an image processor of transformers, which `Preprocess` does not have.

    It names its filter, and of an odd border it cuts the smaller half from the top and the left;
    torchvision rounds to the even number.

    Attributes:
        resample: Filter, as Pillow numbers them.
    """

    resample: int = BICUBIC

    def _filter(self) -> transforms.InterpolationMode:
        return FILTERS[self.resample]

    def _crop(self, image: Image.Image) -> Image.Image:
        assert self.crop_px is not None
        left, top = ((side - self.crop_px) // 2 for side in image.size)
        return image.crop((left, top, left + self.crop_px, top + self.crop_px))


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


def dino_preprocess(name_or_path: str, image_size: int, *, vit: bool = True) -> Preprocess:
    """Return the preprocessing of a transformers folder or hub id, or else the published one.

    The preset published with DINO's own weights, a `ViTModel`, is ignored: it squashes the picture
    to 224 pixels and normalizes with 0.5.
    """
    try:
        own = Preprocess.from_pretrained(name_or_path)
    except OSError:
        return published_dino(image_size)
    plain = Preprocess(own.resize_px, own.crop_px, own.mean, own.std)
    return published_dino(image_size) if vit and plain == SQUASHING else own
