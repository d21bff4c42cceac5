"""Masks: where a picture shows what is to be learned, as weights of its squared errors."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from loldu.errors import LoLDUError
from loldu.pictures.open import load_image


def load_mask(path: Path, size: tuple[int, int]) -> Image.Image:
    """A mask in gray at the size of its upright picture: white is learned, black is not.

    Raises:
        LoLDUError: when it cannot be read, has another shape than the picture, or is all black.
    """
    mask = load_image(path, background="black").convert("L")
    (width, height), (across, down) = mask.size, size
    if abs(width * down - height * across) > max(size):  # more than a rounded side is off by
        raise LoLDUError(
            f"The mask {path} is {width} x {height} pixels but its picture, upright, is "
            f"{across} x {down}; make it anew in the picture's shape."
        )
    if mask.getbbox() is None:
        raise LoLDUError(f"The mask {path} is all black; paint white what is to be learned.")
    return mask.resize(size, Image.Resampling.BOX)


def loss_weights(
    masks: Sequence[Tensor | None],
    pictures: Sequence[range],
    latent_size: tuple[int, int],
    unmasked_weight: float,
) -> Float[Tensor, "views 1 h w"] | None:
    """The weight of every latent's squared error in every view; none without a mask.

    w = (u + (1 - u) m) / mean(u + (1 - u) m), with m the mask averaged over a latent's area and u
    the `unmasked_weight`. The mean is taken over all views of a picture: the size of what its mask
    marks does not change how much the picture counts, and a crop that misses it counts less.

    Args:
        masks: one a view, (1, height, width) in [0, 1]; none where the picture has no mask.
        pictures: the views of each picture.
        latent_size: height and width.
        unmasked_weight: what black weighs where white weighs 1.
    """
    if unmasked_weight == 1 or all(mask is None for mask in masks):
        return None
    weights = torch.ones(len(masks), 1, *latent_size)
    for views in pictures:
        shown = [mask for mask in masks[views.start : views.stop] if mask is not None]
        if shown:
            marked = adaptive_avg_pool2d(torch.stack(shown), latent_size)
            weight = unmasked_weight + (1 - unmasked_weight) * marked
            weights[views.start : views.stop] = weight / weight.mean()
    return weights
