"""Scores as pure functions of features: raw cosines, without a factor or clipping by default.

Each score has a form with one number a picture, from which means, intervals and comparisons are
computed, and most have a second form that returns the mean over the pictures.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from eval.metrics.metric import Pairs

CHUNK = 4096
WIDE = 1024
"""Rows that are converted to double precision at a time, and the width up to which there are so
many."""


def unit(features: Float[Tensor, "n d"]) -> Float64[Tensor, "n d"]:
    """Scale each row to length 1, in fp64 so that the mean of many cosines stays exact."""
    return torch.nn.functional.normalize(features.double(), dim=-1)


def chunks(features: Float[Tensor, "n d"]) -> list[Tensor]:
    """Return the rows in parts of at most `CHUNK`, or fewer if they are wider than `WIDE`."""
    step = max(1, CHUNK * WIDE // max(WIDE, features.shape[1]))
    return [features[start : start + step] for start in range(0, len(features), step)]


def _cosines(a: Float[Tensor, "n d"], b: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Return the cosine of each row of `a` with the same row of `b`."""
    return torch.cat(
        [
            (unit(left) * unit(right)).sum(dim=-1)
            for left, right in zip(chunks(a), chunks(b), strict=True)
        ]
    )


def image_similarities(
    generated: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"],
    *,
    pairs: Pairs = "all",
    exclude_self: bool = False,
) -> Float64[Tensor, " n"]:
    """Return the mean cosine of each generated picture with the real ones.

    With DINO features this is the DINO score, with CLIP features it is CLIP-I.

        score_i = 1/m sum_j cos(g_i, r_j)        pairs = "all"
        score_i = cos(g_i, r_i)                  pairs = "matched"

    The mean of cosines is the dot product with the mean of the unit rows, so no n x m matrix is
    made.

    Args:
        generated: Features of the generated pictures, a row each.
        real: Features of the concept's real pictures, a row each.
        pairs: "all" compares every pair, as published; "matched" compares row i with row i.
        exclude_self: Leave out the pairs i = j, to compare a set with itself.

    Raises:
        ValueError: If there is no pair, or if `pairs` or `exclude_self` need two sets of one size.

    Source: DreamBooth (arXiv:2208.12242), section 4.2.
    """
    n, m = len(generated), len(real)
    if (exclude_self or pairs == "matched") and n != m:
        raise ValueError(
            f"Pairs by position need two sets of one size; these have {n} and {m} pictures."
        )
    if n == 0 or m - exclude_self < 1:
        raise ValueError("There is no pair of pictures to compare: both sets need pictures.")
    if pairs == "matched":
        return _cosines(generated, real)
    total = torch.stack([unit(rows).sum(dim=0) for rows in chunks(real)]).sum(dim=0)
    sums = torch.cat([unit(rows) @ total for rows in chunks(generated)])
    return (sums - _cosines(generated, real)) / (m - 1) if exclude_self else sums / m


def image_similarity(
    generated: Float[Tensor, "n d"],
    real: Float[Tensor, "m d"],
    *,
    pairs: Pairs = "all",
    exclude_self: bool = False,
) -> float:
    """Return the mean of `image_similarities` over the generated pictures.

    Raises:
        ValueError: If `image_similarities` raises it.
    """
    scores = image_similarities(generated, real, pairs=pairs, exclude_self=exclude_self)
    return scores.mean().item()


def text_similarities(
    images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"], *, scale: float | int | None = None
) -> Float64[Tensor, " n"]:
    """Return the cosine of each picture with its own prompt: CLIP-T.

        score_i = cos(image_i, text_i)
        score_i = scale * max(cos(image_i, text_i), 0)        with a scale, as in CLIPScore

    Args:
        images: CLIP features of the generated pictures.
        texts: CLIP features of their prompts without the rare token, in the same order.
        scale: Factor of CLIPScore: 2.5 in its paper, 100 in torchmetrics. None keeps raw cosines.

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
    """Return the mean of `text_similarities`.

    Raises:
        ValueError: If there are no pictures.
    """
    return text_similarities(images, texts, scale=scale).mean().item()


def drifts(adapted: Float[Tensor, "n d"], base: Float[Tensor, "n d"]) -> Float64[Tensor, " n"]:
    """Return how far pictures of other prompts moved away from the base's pictures.

        score_i = 1 - cos(adapted_i, base_i)

    Args:
        adapted: CLIP features of pictures drawn with the adapter from prompts without the concept.
        base: CLIP features of the base's pictures of the same prompts and seeds, in the same order.

    Raises:
        ValueError: If there are no pictures.
    """
    if len(adapted) == 0:
        raise ValueError("There is no picture to compare with the base's.")
    return 1 - _cosines(adapted, base)


def drift(adapted: Float[Tensor, "n d"], base: Float[Tensor, "n d"]) -> float:
    """Return the mean of `drifts`; 0 means that nothing changed.

    Raises:
        ValueError: If there are no pictures.
    """
    return drifts(adapted, base).mean().item()


def diversities(
    generated: Float[Tensor, "n d"], prompts: Sequence[Hashable]
) -> Float64[Tensor, " n"]:
    """Return how different each picture is from the others of its prompt; 0 means identical.

        score_i = 1 - mean of cos(g_i, g_j) over j != i with the prompt of i

    Args:
        generated: Features of the generated pictures.
        prompts: Prompt of each picture, or any other key of it.

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
    generated: Float[Tensor, "n d"], real: Float[Tensor, "m d"], *, exclude_self: bool = False
) -> tuple[Int64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Return the row of the real picture most like each generated one, and the cosine.

    Args:
        generated: Features of the generated pictures, a row each.
        real: Features of the real pictures.
        exclude_self: Leave out the pairs i = j, to compare a set with itself.

    Raises:
        ValueError: If there is no pair.
    """
    if len(generated) == 0 or len(real) - exclude_self < 1:
        raise ValueError("There is no pair of pictures to compare: both sets need pictures.")
    truth = unit(real).T
    places: list[Tensor] = []
    values: list[Tensor] = []
    start = 0
    for rows in chunks(generated):
        cosines = unit(rows) @ truth
        if exclude_self:
            numbers = torch.arange(len(rows))
            cosines[numbers, numbers + start] = -torch.inf
        best = cosines.max(dim=-1)
        places.append(best.indices)
        values.append(best.values)
        start += len(rows)
    return torch.cat(places), torch.cat(values)


def collapses(
    regions: Sequence[Float[Tensor, "n d"]], real: Sequence[Float[Tensor, "_ d"]]
) -> Float64[Tensor, " n"]:
    """Return 1 for each picture in which a subject is missing or looks like another one, else 0.

        like_i(s, t) = mean over r in R_t of cos(g_is, r)
        score_i = 1 if g_is = 0, or like_i(s, t) >= like_i(s, s), for some subjects s != t

    Two regions with the same features are always one subject twice, whichever it is.

    Args:
        regions: DINO features of the region of each subject in every picture; zeros without it.
        real: Features of the real pictures of each subject, in the same order.

    Raises:
        ValueError: If there are fewer than two subjects, or there are no pictures.

    Source: the subject collapse rate of arXiv:2603.26078, which asks of DINOv2 whether identities
    became alike. Here the region of a subject must be more like it than like the others.
    """
    if len(regions) < 2 or len(regions) != len(real):
        raise ValueError("Subjects collapse into each other; give two subjects or more.")
    lost = torch.zeros(len(regions[0]), dtype=torch.bool)
    for subject, rows in enumerate(regions):
        like = torch.stack([image_similarities(rows, other) for other in real])
        others = torch.cat([like[:subject], like[subject + 1 :]])
        lost |= (others >= like[subject]).any(0) | ~rows.any(1)
    return lost.double()
