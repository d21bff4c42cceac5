"""The scores, as pure functions of features: raw cosines, no factor, no clipping unless asked.

Every score has a form that gives one number a picture, which is what means, intervals and
comparisons are made of, and for what is reported of one set of pictures a form that is their mean.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

Pairs = Literal["all", "matched"]
CHUNK = 4096
"""Rows that are in double precision at one time."""


def _unit(features: Float[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    """Scale every row to length one, in fp64 so that the mean of many cosines stays exact."""
    return torch.nn.functional.normalize(features.double(), dim=-1)


def _chunks(features: Float[Tensor, "n d"]) -> list[Tensor]:
    return [features[start : start + CHUNK] for start in range(0, len(features), CHUNK)]


def _cosines(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """The cosine of each row of one with the same row of the other."""
    return torch.cat(
        [
            (_unit(left) * _unit(right)).sum(dim=-1)
            for left, right in zip(_chunks(a), _chunks(b), strict=True)
        ]
    )


def image_similarities(
    generated: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"],
    *,
    pairs: Pairs = "all",
    exclude_self: bool = False,
) -> Float64[Tensor, " n"]:
    """Each generated picture's mean cosine with the real ones: DINO or CLIP-I, by the features.

        score_i = 1/m sum_j cos(g_i, r_j)        pairs = "all"
        score_i = cos(g_i, r_i)                  pairs = "matched"

    The mean of cosines is the cosine's numerator with the mean of the unit rows, so no n x m matrix
    is made.

    Args:
        generated: Features of the generated pictures, a row each.
        real: Features of the concept's true pictures, a row each.
        pairs: Every pair, which is the published score, or each picture with the one beside it.
        exclude_self: Leave out the pairs i = j, for a set measured against itself.

    Raises:
        ValueError: If there is no pair to average, or pairs are matched (or to be left out) between
            sets that differ in size.

    Source: DreamBooth (arXiv:2208.12242), section 4.2.
    """
    n, m = len(generated), len(real)
    if (exclude_self or pairs == "matched") and n != m:
        raise ValueError(f"Pairs by position need two sets of one size: there are {n} and {m}.")
    if n == 0 or m - exclude_self < 1:
        raise ValueError("There is no pair of pictures to compare: both sets need pictures.")
    if pairs == "matched":
        return _cosines(generated, real)
    total = torch.stack([_unit(rows).sum(dim=0) for rows in _chunks(real)]).sum(dim=0)
    sums = torch.cat([_unit(rows) @ total for rows in _chunks(generated)])
    return (sums - _cosines(generated, real)) / (m - 1) if exclude_self else sums / m


def image_similarity(
    generated: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"],
    *,
    pairs: Pairs = "all",
    exclude_self: bool = False,
) -> float:
    """Mean of `image_similarities` over the generated pictures.

    Raises:
        ValueError: As `image_similarities` does.
    """
    scores = image_similarities(generated, real, pairs=pairs, exclude_self=exclude_self)
    return scores.mean().item()


def text_similarities(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"], *, scale: float | int | None = None
) -> Float64[Tensor, " n"]:
    """The cosine of each picture with its own prompt: CLIP-T.

        score_i = cos(image_i, text_i)
        score_i = scale * max(cos(image_i, text_i), 0)        with a scale, as CLIPScore has it

    Args:
        images: CLIP features of the generated pictures.
        texts: CLIP features of their prompts, the rare token left out, in the same order.
        scale: CLIPScore's factor: 2.5 in its paper, 100 in torchmetrics.

    Raises:
        ValueError: If there are no pictures.

    Source: DreamBooth (arXiv:2208.12242), section 4.2; CLIPScore (arXiv:2104.08718), section 3.
    """
    if len(images) == 0:
        raise ValueError("There is no picture to compare with a prompt.")
    cosines = _cosines(images, texts)
    return cosines if scale is None else scale * cosines.clamp(min=0)


def clip_t(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"], *, scale: float | int | None = None
) -> float:
    """Mean of `text_similarities`.

    Raises:
        ValueError: If there are no pictures.
    """
    return text_similarities(images, texts, scale=scale).mean().item()


def drift(adapted: Float[Tensor, "n d"], base: Float[Tensor, "n d"]) -> float:
    """How far pictures of other things have moved from the base's: 0 is not at all.

        score = 1 - 1/n sum_i cos(adapted_i, base_i)

    Args:
        adapted: CLIP features of pictures drawn with the adapter, of prompts without the concept.
        base: Those of the base's pictures, of the same prompts and noise in the same order.

    Raises:
        ValueError: If there are no pictures.
    """
    if len(adapted) == 0:
        raise ValueError("There is no picture to compare with the base's.")
    return 1 - _cosines(adapted, base).mean().item()


def diversities(
    generated: Float[Tensor, "n d"], prompts: Sequence[Hashable]
) -> Float64[Tensor, " n"]:
    """How unlike each picture is to the others of its prompt: 0 is that all are the same.

        score_i = 1 - mean of cos(g_i, g_j) over j != i with the prompt of i

    Args:
        generated: Features of the generated pictures.
        prompts: What tells the prompts apart, for each picture.

    Raises:
        ValueError: If a picture is the only one of its prompt.

    Source: DreamBooth (arXiv:2208.12242), section 4.3, which measures it by LPIPS.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(index)
    scores = torch.empty(len(generated), dtype=torch.float64)
    for members in groups.values():
        if len(members) < 2:
            raise ValueError("Diversity needs two pictures of every prompt.")
        own = generated[members]
        scores[members] = 1 - image_similarities(own, own, exclude_self=True)
    return scores


def nearest(
    generated: Float[Tensor, "n d"], real: Float[Tensor, "m d"]
) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " n"]]:
    """The real picture most like each generated one: its row, and the cosine.

    Raises:
        ValueError: If one of the sets is empty.
    """
    if len(generated) == 0 or len(real) == 0:
        raise ValueError("There is no pair of pictures to compare: both sets need pictures.")
    truth = _unit(real).T
    found = [(_unit(rows) @ truth).max(dim=-1) for rows in _chunks(generated)]
    return torch.cat([best.indices for best in found]), torch.cat([best.values for best in found])
