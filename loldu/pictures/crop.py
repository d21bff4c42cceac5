"""Cut pictures and their masks into crops for the VAE."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from loldu.errors import LoLDUError
from loldu.pictures.folder import CaptionedImage, min_side_px
from loldu.pictures.mask import load_mask
from loldu.pictures.open import load_image

RANDOM_CROPS = 4
"""Random crops per oblong picture; they are drawn once, because latents are cached."""

_CROPS = 0
"""Stream of the seed for crops; the training loop uses 1 and up."""


@dataclass(frozen=True)
class Framing:
    """Where a view lies in its picture, in pixels.

    Attributes:
        picture: Width and height of the picture.
        resized: Width and height of the picture after it was resized for the view.
        corner: Left and top of the view in the resized picture, which is mirrored if the view is.
        shape: Width and height of the view.
        mirrored: Whether the view is a mirror image.
    """

    picture: tuple[int, int]
    resized: tuple[int, int]
    corner: tuple[int, int]
    shape: tuple[int, int]
    mirrored: bool = False

    @staticmethod
    def whole(resolution: int) -> "Framing":
        """Return the framing of a square picture that is neither resized nor cropped."""
        square = resolution, resolution
        return Framing(square, square, (0, 0), square)


@dataclass(frozen=True)
class View:
    """A view of a picture.

    Attributes:
        index: Index of the picture.
        pixels: Pixels in [-1, 1].
        mask: Mask in [0, 1], cropped like the pixels; None without a mask.
        framing: Where the view lies in its picture.
    """

    index: int
    pixels: Float[Tensor, "3 height width"]
    mask: Float[Tensor, "1 height width"] | None
    framing: Framing


def framings(
    size: tuple[int, int],
    shape: tuple[int, int],
    *,
    center_crop: bool,
    random_flip: bool,
    rng: np.random.Generator,
) -> list[Framing]:
    """Return the framings of a picture's views: crops, and their mirror images on request.

    Args:
        size: Width and height of the picture.
        shape: Width and height of the views.
        center_crop: Whether to take the middle, or several random crops.
        random_flip: Whether to add mirror images.
        rng: Random numbers of the crops.
    """
    width, height = shape
    scale = max(width / size[0], height / size[1])
    resized = max(width, round(size[0] * scale)), max(height, round(size[1] * scale))
    spare_x, spare_y = resized[0] - width, resized[1] - height
    if center_crop or spare_x == spare_y == 0:
        corners = [(spare_x // 2, spare_y // 2)]
    else:
        corners = [
            (int(rng.integers(spare_x + 1)), int(rng.integers(spare_y + 1)))
            for _ in range(RANDOM_CROPS)
        ]
    found: list[Framing] = []
    for x, y in corners:
        found.append(Framing(size, resized, (x, y), shape))
        if random_flip:
            found.append(Framing(size, resized, (spare_x - x, y), shape, mirrored=True))
    return found


def square_crops(
    image: Image.Image,
    resolution: int,
    *,
    center_crop: bool,
    random_flip: bool,
    rng: np.random.Generator,
) -> Iterator[Float[Tensor, "3 resolution resolution"]]:
    """Yield the views of a picture in [-1, 1]: crops, and their mirror images on request."""
    shape = resolution, resolution
    return crops(image, shape, center_crop=center_crop, random_flip=random_flip, rng=rng)


def crops(
    image: Image.Image,
    shape: tuple[int, int],
    *,
    center_crop: bool,
    random_flip: bool,
    rng: np.random.Generator,
) -> Iterator[Float[Tensor, "3 height width"]]:
    """Yield the views of a picture as `square_crops`, but of any width and height."""
    places = framings(image.size, shape, center_crop=center_crop, random_flip=random_flip, rng=rng)
    resized = image.resize(places[0].resized, Image.Resampling.LANCZOS)
    for place in places:
        x, y = place.corner
        if place.mirrored:
            x = place.resized[0] - shape[0] - x
        crop = np.asarray(resized.crop((x, y, x + shape[0], y + shape[1])), dtype=np.float32)
        view = torch.as_tensor(crop / 127.5 - 1).permute(2, 0, 1)
        yield view.flip(-1) if place.mirrored else view


def load_views(
    images: Sequence[CaptionedImage],
    resolution: int,
    *,
    center_crop: bool,
    random_flip: bool,
    seed: int,
    shape: tuple[int, int] | None = None,
) -> Iterator[View]:
    """Yield every view of every picture.

    One file is read at a time.

    Args:
        images: The pictures.
        resolution: Side of the views.
        center_crop: Whether to take the middle, or several random crops.
        random_flip: Whether to add mirror images.
        seed: Seed of the random crops.
        shape: Width and height of the views, if they are not square.

    Raises:
        LoLDUError: If a file cannot be read, is smaller than a quarter of the resolution, or is a
            mask that marks nothing inside any crop.
    """
    shape = shape or (resolution, resolution)
    how = {"center_crop": center_crop, "random_flip": random_flip}
    for index, captioned in enumerate(images):
        image = load_image(captioned.path, min_side_px(resolution))
        layers = [image]
        if captioned.mask is not None:
            layers.append(load_mask(captioned.mask, image.size).convert("RGB"))
        views, *masks = [
            list(crops(layer, shape, rng=_crop_rng(seed, index), **how)) for layer in layers
        ]
        if masks and all(bool((mask == -1).all()) for mask in masks[0]):
            raise LoLDUError(
                f"The crop cuts away all that {captioned.mask} marks; crop the picture and its "
                "mask yourself, or use --no_center_crop."
            )
        places = framings(image.size, shape, rng=_crop_rng(seed, index), **how)
        for number, place in enumerate(places):
            mask = (masks[0][number][:1] + 1) / 2 if masks else None
            yield View(index, views[number], mask, place)


def _crop_rng(seed: int, index: int) -> np.random.Generator:
    """Return the random numbers for the crops of a picture, the same for its mask."""
    return np.random.default_rng([seed, _CROPS, index])
