"""The interface of an encoder: L2-normalized fp32 rows from pictures and prompts."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from eval.encoders.preprocess import Preprocess

BATCH_SIZE = 32


@dataclass(frozen=True)
class Identity:
    """Everything that decides a feature. Scores compare only where it is the same.

    Attributes:
        name: Name or path as the user gave it.
        library: Package that built the network, with its version.
        weights: First 16 digits of the SHA-256 of the names and values of all parameters.
        preprocess: Preprocessing of pictures.
    """

    name: str
    library: str
    weights: str
    preprocess: Preprocess

    def as_json(self) -> dict[str, Any]:
        """Return the fields for a result file."""
        return asdict(self)


class Encoder(ABC):
    """An encoder of pictures. Subclasses set the attributes and implement `_image_rows`.

    Attributes:
        name: Name or path as the user gave it.
        library: Distribution that builds the network.
        model: Network, in fp32.
        preprocess: Turns a picture into the network's input.
        device: Device that holds the network.
    """

    name: str
    library: str
    model: Any
    preprocess: Preprocess
    device: torch.device

    def to(self, device: torch.device | str) -> None:
        """Move the network to a device; inputs follow it."""
        self.device = torch.device(device)
        self.model.to(self.device)

    @cached_property
    def identity(self) -> Identity:
        """Everything that decides this encoder's features; the first use reads every weight."""
        library = f"{self.library} {version(self.library)}"
        return Identity(self.name, library, _digest(self.model), self.preprocess)

    def encode_images(self, images: Sequence[Image.Image]) -> Float[Tensor, "n d"]:
        """Return a unit fp32 row for each picture, on the CPU."""
        batches = [
            images[start : start + BATCH_SIZE] for start in range(0, len(images), BATCH_SIZE)
        ]
        return torch.cat([self.encode_pixels([*map(self.preprocess, batch)]) for batch in batches])

    @torch.inference_mode()
    def encode_pixels(self, pixels: Sequence[Float[Tensor, "3 size size"]]) -> Float[Tensor, "n d"]:
        """Return a unit fp32 row for each preprocessed picture of one batch, on the CPU."""
        return _unit(self._image_rows(torch.stack([*pixels]).to(self.device)))

    @abstractmethod
    def _image_rows(self, pixels: Tensor) -> Tensor:
        """Return the network's output for one batch."""


class TextEncoder(Encoder):
    """An encoder of pictures and prompts into one space, as CLIP is."""

    @torch.inference_mode()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Return a unit fp32 row for each string, on the CPU; equal strings are encoded once."""
        unique = list(dict.fromkeys(texts))
        rows = torch.cat(
            [
                _unit(self._text_rows(unique[start : start + BATCH_SIZE]))
                for start in range(0, len(unique), BATCH_SIZE)
            ]
        )
        return rows[[unique.index(text) for text in texts]]

    @abstractmethod
    def _text_rows(self, texts: list[str]) -> Tensor:
        """Return the network's output for one batch."""


def _unit(rows: Tensor) -> Tensor:
    return torch.nn.functional.normalize(rows.float().cpu(), dim=-1)


def _digest(model: torch.nn.Module) -> str:
    whole = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return whole.hexdigest()[:16]
