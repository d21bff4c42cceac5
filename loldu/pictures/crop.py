"""Cut pictures and their masks into crops for the VAE."""

from collections.abc import Iterator, Sequence

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
    width, height = shape
    scale = max(width / image.width, height / image.height)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    resized = image.resize(size, Image.Resampling.LANCZOS)
    spare_x, spare_y = size[0] - width, size[1] - height
    if center_crop or spare_x == spare_y == 0:
        corners = [(spare_x // 2, spare_y // 2)]
    else:
        corners = [
            (int(rng.integers(spare_x + 1)), int(rng.integers(spare_y + 1)))
            for _ in range(RANDOM_CROPS)
        ]
    for x, y in corners:
        crop = np.asarray(resized.crop((x, y, x + width, y + height)), dtype=np.float32)
        view = torch.as_tensor(crop / 127.5 - 1).permute(2, 0, 1)
        yield view
        if random_flip:
            yield view.flip(-1)


def load_views(
    images: Sequence[CaptionedImage],
    resolution: int,
    *,
    center_crop: bool,
    random_flip: bool,
    seed: int,
    shape: tuple[int, int] | None = None,
) -> Iterator[tuple[int, Float[Tensor, "3 height width"], Float[Tensor, "1 height width"] | None]]:
    """Yield every view of every picture: the picture's index, the pixels, the mask in [0, 1].

    One file is read at a time. A mask is cropped like its picture; without a mask it is None.

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
    for index, captioned in enumerate(images):
        image = load_image(captioned.path, min_side_px(resolution))
        layers = [image]
        if captioned.mask is not None:
            layers.append(load_mask(captioned.mask, image.size).convert("RGB"))
        views, *masks = [
            list(
                crops(
                    layer,
                    shape or (resolution, resolution),
                    center_crop=center_crop,
                    random_flip=random_flip,
                    rng=np.random.default_rng([seed, _CROPS, index]),
                )
            )
            for layer in layers
        ]
        if masks and all(bool((mask == -1).all()) for mask in masks[0]):
            raise LoLDUError(
                f"The crop cuts away all that {captioned.mask} marks; crop the picture and its "
                "mask yourself, or use --no_center_crop."
            )
        for number, view in enumerate(views):
            yield index, view, (masks[0][number][:1] + 1) / 2 if masks else None
