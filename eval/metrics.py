"""The scores, as pure functions of features: raw cosines, no factor, no clipping."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def _unit(features: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
    """Scale every row to length one, in fp64 so that the mean of many cosines stays exact."""
    return torch.nn.functional.normalize(features.double(), dim=-1)


def image_similarity(
    generated: Float[Tensor, "n d"], real: Float[Tensor, "m d"], *, exclude_self: bool = False
) -> float:
    """Mean cosine over all generated x real pairs: DINO or CLIP-I, by whose features these are.

        score = 1/(nm) sum_ij cos(g_i, r_j)

    Args:
        generated: Features of the generated pictures, a row each.
        real: Features of the concept's true pictures, a row each.
        exclude_self: Leave out the pairs i = j, for a set measured against itself.

    Raises:
        ValueError: If there is no pair to average, or ``exclude_self`` is asked of two sets that
            differ in size.

    Source: DreamBooth (arXiv:2208.12242), section 4.2.
    """
    cosines = _unit(generated) @ _unit(real).T
    if exclude_self:
        if generated.shape != real.shape:
            raise ValueError("exclude_self compares a set with itself: both must have one size.")
        cosines = cosines[~torch.eye(len(real), dtype=torch.bool, device=real.device)]
    if cosines.numel() == 0:
        raise ValueError("There is no pair of pictures to compare: both sets need pictures.")
    return cosines.mean().item()


def clip_t(images: Float[Tensor, "n d"], texts: Float[Tensor, "n d"]) -> float:
    """Mean cosine of each picture with its own prompt: CLIP-T.

        score = 1/n sum_i cos(image_i, text_i)

    Args:
        images: CLIP features of the generated pictures.
        texts: CLIP features of their prompts, the rare token left out, in the same order.

    Raises:
        ValueError: If there are no pictures.

    Source: DreamBooth (arXiv:2208.12242), section 4.2.
    """
    if len(images) == 0:
        raise ValueError("There is no picture to compare with a prompt.")
    return (_unit(images) * _unit(texts)).sum(dim=-1).mean().item()


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
    return 1 - (_unit(adapted) * _unit(base)).sum(dim=-1).mean().item()


def mean_over_subjects(scores: Iterable[Sequence[float]]) -> float:
    """Mean over subjects of each subject's mean, so that every subject counts the same.

    Args:
        scores: A sequence of scores for each subject.

    Raises:
        ValueError: If there is no subject, or one without a score.
    """
    subjects = list(scores)
    if not subjects or not all(subjects):
        raise ValueError("Every subject needs a score, and there must be a subject.")
    return sum(sum(subject) / len(subject) for subject in subjects) / len(subjects)
