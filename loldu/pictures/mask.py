"""Masks mark what to learn in a picture; they become weights of its squared errors."""

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from loldu.errors import LoLDUError
from loldu.pictures.open import load_image


def load_mask(path: Path, size: tuple[int, int], *, may_be_black: bool = False) -> Image.Image:
    """Return a mask in gray at the size of its upright picture: white is learned, black is not.

    Raises:
        LoLDUError: If it cannot be read, differs in shape from the picture, or is all black and may
            not be.
    """
    mask = load_image(path, background="black").convert("L")
    (width, height), (across, down) = mask.size, size
    if abs(width * down - height * across) > max(size):  # more than a rounded side is off by
        raise LoLDUError(
            f"The mask {path} is {width} x {height} pixels but its picture, upright, is "
            f"{across} x {down}; give the mask the same shape."
        )
    if mask.getbbox() is None and not may_be_black:
        raise LoLDUError(f"The mask {path} is all black; paint the part to learn white.")
    return mask.resize(size, Image.Resampling.BOX)


def marked_shares(
    masks: Sequence[Tensor | None], latent_size: tuple[int, int]
) -> Float[Tensor, "views 1 h w"]:
    """Return how much of every latent's area the mask of its view marks; all of it without a mask.

    Args:
        masks: One per view, (1, height, width) in [0, 1]; None if the picture has no mask.
        latent_size: Height and width.
    """
    whole = torch.ones(1, *latent_size)
    return torch.stack(
        [whole if mask is None else adaptive_avg_pool2d(mask, latent_size) for mask in masks]
    )


def loss_weights(
    masks: Sequence[Tensor | None],
    pictures: Sequence[range],
    latent_size: tuple[int, int],
    unmasked_weight: float,
) -> Float[Tensor, "views 1 h w"] | None:
    """Return the weight of every latent's squared error in every view, or None without masks.

    w = (u + (1 - u) m) / mean(u + (1 - u) m), with m the mask averaged over a latent's area and u
    the `unmasked_weight`. The mean is taken over all views of a picture: the size of what its mask
    marks does not change how much the picture counts, and a crop that misses it counts less.

    Args:
        masks: One per view, (1, height, width) in [0, 1]; None if the picture has no mask.
        pictures: The views of each picture.
        latent_size: Height and width.
        unmasked_weight: Weight of black, where white has 1.
    """
    if unmasked_weight == 1 or all(mask is None for mask in masks):
        return None
    weights = torch.ones(len(masks), 1, *latent_size)
    for views in pictures:
        own = masks[views.start : views.stop]
        if any(mask is not None for mask in own):
            weight = unmasked_weight + (1 - unmasked_weight) * marked_shares(own, latent_size)
            weights[views.start : views.stop] = weight / weight.mean()
    return weights
