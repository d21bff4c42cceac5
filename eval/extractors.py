"""Feature extractors behind one interface: L2-normalised fp32 rows from pictures and texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from safetensors import SafetensorError
from torch import Tensor
from torchvision import transforms
from transformers import AutoTokenizer, CLIPModel, ViTModel
from transformers.image_processing_base import ImageProcessingMixin

from eval.errors import EvalError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BATCH_SIZE = 32

Extractor = TypeVar("Extractor")


class ImageExtractor(ABC):
    """What a score of pictures against pictures needs."""

    model: Any
    device: torch.device

    def to(self, device: torch.device | str) -> None:
        """Move the network, and what it will be given."""
        self.device = torch.device(device)
        self.model.to(self.device)

    def encode_images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Return a unit fp32 row for each picture, on the CPU."""
        return _in_batches(self._image_rows, images)

    @abstractmethod
    def _image_rows(self, images: list[Image.Image]) -> Tensor:
        """Return the network's output for one batch."""


class ImageTextExtractor(ImageExtractor):
    """What a score of pictures against prompts needs too."""

    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return a unit fp32 row for each text, on the CPU, comparable with those of pictures."""
        return _in_batches(self._text_rows, texts)

    @abstractmethod
    def _text_rows(self, texts: list[str]) -> Tensor:
        """Return the network's output for one batch."""


def _in_batches(
    rows_of: Callable[[list[Any]], Tensor], items: Sequence[Any]
) -> Float[Tensor, "n d"]:
    with torch.inference_mode():
        rows = [
            rows_of(list(items[start : start + BATCH_SIZE]))
            for start in range(0, len(items), BATCH_SIZE)
        ]
    return torch.nn.functional.normalize(torch.cat(rows).float().cpu(), dim=-1)


@dataclass(frozen=True)
class Preprocess:
    """Picture to tensor: EXIF rotation, RGB, bicubic resize, centre crop, normalise.

    The shorter side is resized to ``resize_px``; without ``crop_px`` both sides are.
    """

    resize_px: int
    crop_px: int | None
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 size size"]:
        """Return the picture as the network wants it."""
        size = self.resize_px if self.crop_px else (self.resize_px, self.resize_px)
        steps: list[Callable[[Any], Any]] = [
            transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
        ]
        if self.crop_px:
            steps.append(transforms.CenterCrop(self.crop_px))
        steps += [transforms.ToTensor(), transforms.Normalize(self.mean, self.std)]
        pixels: Any = transforms.Compose(steps)(ImageOps.exif_transpose(image).convert("RGB"))
        return pixels

    @classmethod
    def from_pretrained(cls, name_or_path: str) -> Preprocess:
        """Read size, mean and standard deviation from ``preprocessor_config.json``."""
        config, _ = ImageProcessingMixin.get_image_processor_dict(name_or_path)
        crop_px = _side(config["crop_size"]) if config.get("do_center_crop") else None
        return cls(
            _side(config["size"]), crop_px, tuple(config["image_mean"]), tuple(config["image_std"])
        )


def _side(size: int | dict[str, int]) -> int:
    """Return one side of a square size, which is written in one of three ways."""
    return size if isinstance(size, int) else size.get("shortest_edge", size.get("height", 0))


def dino_preprocess(name_or_path: str, image_size: int) -> Preprocess:
    """Return the preprocessing that the published DINO score is defined with, or a folder's own.

    Resize 256, crop 224, ImageNet mean and deviation (in that proportion for another size). A
    local folder's ``preprocessor_config.json`` comes first: its size, mean and deviation, and a
    crop if it asks for one. Only the preset published with DINO's own weights is never followed,
    which squashes the picture to 224 and normalises with 0.5.
    """
    if (Path(name_or_path) / "preprocessor_config.json").is_file():
        own = Preprocess.from_pretrained(name_or_path)
        if own != Preprocess(224, None, (0.5,) * 3, (0.5,) * 3):
            return own
    return Preprocess(round(image_size * 256 / 224), image_size)


class ClipExtractor(ImageTextExtractor):
    """A transformers ``CLIPModel`` with its tokenizer, from a folder or the hub."""

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        self.model = CLIPModel.from_pretrained(name_or_path, dtype=torch.float32).eval()
        self.to(device)
        self.tokenizer = AutoTokenizer.from_pretrained(name_or_path)
        self.preprocess = Preprocess.from_pretrained(name_or_path)

    def _image_rows(self, images: list[Image.Image]) -> Tensor:
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device)
        return self.model.get_image_features(pixel_values=pixels).pooler_output

    def _text_rows(self, texts: list[str]) -> Tensor:
        tokens = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        return self.model.get_text_features(**tokens.to(self.device)).pooler_output


class OpenClipExtractor(ImageTextExtractor):
    """An open_clip model: ``architecture/pretrained``."""

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        import open_clip

        architecture, _, pretrained = name.partition("/")
        self.device = torch.device(device)
        loaded: tuple[Any, Any, Any] = open_clip.create_model_and_transforms(
            architecture, pretrained=pretrained or None, device=self.device
        )
        self.model, _, self.preprocess = loaded
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(architecture)

    def _image_rows(self, images: list[Image.Image]) -> Tensor:
        upright = [ImageOps.exif_transpose(image) for image in images]
        pixels = torch.stack([self.preprocess(image) for image in upright]).to(self.device)
        return self.model.encode_image(pixels)

    def _text_rows(self, texts: list[str]) -> Tensor:
        return self.model.encode_text(self.tokenizer(texts).to(self.device))


class DinoExtractor(ImageExtractor):
    """A ``ViTModel``: the CLS token of its last layer, before any head or pooler."""

    def __init__(self, name_or_path: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        self.model = ViTModel.from_pretrained(
            name_or_path, add_pooling_layer=False, dtype=torch.float32
        ).eval()
        self.to(device)
        self.preprocess = dino_preprocess(name_or_path, self.model.config.image_size)

    def _image_rows(self, images: list[Image.Image]) -> Tensor:
        pixels = torch.stack([self.preprocess(image) for image in images]).to(self.device)
        return self.model(pixel_values=pixels).last_hidden_state[:, 0]


def _load(
    make: Callable[[str, torch.device | str], Extractor],
    name: str,
    device: torch.device | str,
    flag: str,
) -> Extractor:
    """Make an extractor, and turn the many ways weights can be missing into one sentence."""
    try:
        return make(name, device)
    except ModuleNotFoundError as error:
        raise EvalError(
            f"{flag} {name} needs the package {error.name}: pip install 'loldu[eval]', or pass "
            f"{flag} a folder with a transformers model."
        ) from error
    except (OSError, RuntimeError, SafetensorError) as error:
        raise EvalError(
            f"{flag} {name} has no usable weights in a folder of that name, in the hub's cache or "
            f"on the hub: pass {flag} a folder that holds the model, or run once with a network."
        ) from error


def load_clip(name_or_path: str, device: torch.device | str = "cpu") -> ImageTextExtractor:
    """Load CLIP: a transformers folder or hub id, or ``open_clip:architecture/pretrained``.

    Raises:
        EvalError: If the weights are not there, with what to do.
    """
    kind, _, open_clip_name = name_or_path.partition(":")
    if kind == "open_clip":
        return _load(OpenClipExtractor, open_clip_name, device, "--clip")
    return _load(ClipExtractor, name_or_path, device, "--clip")


def load_dino(name_or_path: str, device: torch.device | str = "cpu") -> ImageExtractor:
    """Load DINO: a transformers ``ViTModel`` folder or hub id.

    Raises:
        EvalError: If the weights are not there, with what to do.
    """
    return _load(DinoExtractor, name_or_path, device, "--dino")
