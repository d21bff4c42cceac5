"""The interface of an encoder: L2-normalized fp32 rows from pictures and prompts."""

from __future__ import annotations

import hashlib
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
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
        return Identity(self.name, library, model_digest(self.model), self.preprocess)

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


class TokenEncoder(Encoder):
    """A vision transformer. Its row of a picture is the CLS token of the last layer.

    `PatchGrid` reads the other tokens of the same pass.
    """

    keeps_tokens = False
    """Whether the tokens of the last batch are kept until they are read again."""
    _kept: tuple[Tensor, Tensor] | None = None

    @property
    @abstractmethod
    def prefix(self) -> int:
        """Number of tokens before those of the patches: CLS and registers."""

    @abstractmethod
    def _tokens(self, pixels: Tensor) -> Tensor:
        """Return all tokens of the last layer, CLS first."""

    def tokens(self, pixels: Tensor) -> Tensor:
        """Return all tokens of one batch; the network runs once for two equal calls in a row."""
        if self._kept is not None and torch.equal(self._kept[0], pixels):
            found, self._kept = self._kept[1], None
            return found
        found = self._tokens(pixels)
        self._kept = (pixels, found) if self.keeps_tokens else None
        return found

    def _image_rows(self, pixels: Tensor) -> Tensor:
        return self.tokens(pixels)[:, 0]


class PatchGrid(Encoder):
    """The patches of a vision transformer, averaged to `CELLS` x `CELLS` places of a picture.

    The cosine of two rows is the mean of the cosines of their places.
    """

    CELLS = 4

    def __init__(self, source: TokenEncoder) -> None:
        """Read the patches of an encoder; both together take one pass of its network."""
        source.keeps_tokens = True
        self.source = source
        self.name, self.library, self.model = source.name, source.library, source.model
        self.preprocess, self.device = source.preprocess, source.device

    def to(self, device: torch.device | str) -> None:
        """Move the network of both encoders to a device."""
        self.source.to(device)
        self.device = self.source.device

    @cached_property
    def identity(self) -> Identity:
        """Identity of the source; the kind of row is part of `weights`."""
        own = self.source.identity
        return replace(own, weights=f"{own.weights}, {self.CELLS} x {self.CELLS} patches")

    def _image_rows(self, pixels: Tensor) -> Tensor:
        patches = self.source.tokens(pixels)[:, self.source.prefix :].float()
        side = math.isqrt(patches.shape[1])
        grid = patches.transpose(1, 2).unflatten(2, (side, side))
        places = torch.nn.functional.adaptive_avg_pool2d(grid, self.CELLS)
        return torch.nn.functional.normalize(places, dim=1).flatten(1)


class Thumbnail(Encoder):
    """A picture as its own pixels, small and cropped to a square."""

    library = "pillow"

    def __init__(self, side_px: int, device: torch.device | str = "cpu") -> None:
        """Encode pictures as `side_px` x `side_px` pixels."""
        self.name, self.model = f"{side_px} x {side_px} pixels", torch.nn.Identity()
        self.preprocess = Preprocess(side_px, side_px, (0.0,) * 3, (1.0,) * 3)
        self.to(device)

    def _image_rows(self, pixels: Tensor) -> Tensor:
        return pixels.flatten(1)


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


def model_digest(model: torch.nn.Module) -> str:
    """Return the first 16 digits of the SHA-256 of the names and values of all parameters."""
    whole = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        whole.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return whole.hexdigest()[:16]
