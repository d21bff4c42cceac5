"""Likeness of pictures pixel by pixel, to find copies of training pictures."""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from eval.metrics.functional import chunks

SIDE_PX = 24
SHIFT_PX = 3
"""Side of the thumbnails that are compared, and how far one is moved: an eighth of the side."""


def aligned_likeness(
    generated: Float[Tensor, "n pixels"],
    real: Float[Tensor, "m pixels"],
    *,
    exclude_self: bool = False,
) -> Float64[Tensor, " n"]:
    """Return the correlation of each generated picture with the real one most like it.

        score_i = max over j, shift, mirror of  corr(g_i, r_j moved)

    The correlation is that of the colors where the two overlap, so brightness and contrast do not
    count. Shifts are at most `SHIFT_PX` to each side, with and without a mirrored picture.

    Args:
        generated: Thumbnails of the generated pictures, 3 x `SIDE_PX` x `SIDE_PX` in a row.
        real: Thumbnails of the real pictures.
        exclude_self: Leave out the pairs i = j, to compare a set with itself.

    Raises:
        ValueError: If there is no pair.
    """
    if len(generated) == 0 or len(real) - exclude_self < 1:
        raise ValueError("There is no pair of pictures to compare: both sets need pictures.")
    truth = real.float().reshape(-1, 3, SIDE_PX, SIDE_PX)
    moves = range(-SHIFT_PX, SHIFT_PX + 1)
    best: list[Tensor] = []
    start = 0
    for rows in chunks(generated):
        drawn = rows.float().reshape(-1, 3, SIDE_PX, SIDE_PX)
        found = torch.full((len(rows), len(real)), -1.0)
        for down, across in ((down, across) for down in moves for across in moves):
            here = _centered(_part(drawn, down, across))
            for picture in (truth, truth.flip(-1)):
                there = _centered(_part(picture, -down, -across))
                torch.maximum(found, here @ there.T, out=found)
        if exclude_self:
            numbers = torch.arange(len(rows))
            found[numbers, numbers + start] = -1.0
        best.append(found.amax(1).double())
        start += len(rows)
    return torch.cat(best)


def _part(
    pictures: Float[Tensor, "n 3 side side"], down: int, across: int
) -> Float[Tensor, "n 3 h w"]:
    """Return what is left of the pictures after they moved out of their frame."""
    rows = slice(max(down, 0), SIDE_PX + min(down, 0))
    columns = slice(max(across, 0), SIDE_PX + min(across, 0))
    return pictures[:, :, rows, columns]


def _centered(pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n pixels"]:
    """Return rows with mean 0 and length 1; a flat picture becomes zeros."""
    rows = pictures.flatten(1)
    return torch.nn.functional.normalize(rows - rows.mean(1, keepdim=True), dim=1, eps=1e-6)
