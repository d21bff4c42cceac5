"""Discrimination as pure functions: does a generated picture find its own subject among others."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from eval.metrics.functional import chunks, unit


def retrieval(
    queries: Float[Tensor, "n d"],
    gallery: Float[Tensor, "m d"],
    own: Bool[Tensor, " m"],
    *,
    exclude_self: bool = False,
) -> tuple[Float64[Tensor, " n"], Float64[Tensor, " n"]]:
    """Return average precision and top-1 hit of each query, which ranks the gallery by cosine.

        AP_i    = mean over own r of  #{own s: c_is >= c_ir} / #{s: c_is >= c_ir}
        top_1_i = 1 if the picture with the largest cosine is one of the subject's own

    Pictures with equal cosines have one rank, as in scikit-learn's `average_precision_score`. For
    top-1, such pictures share the hit: half of them own is half a hit.

    Args:
        queries: Features of the pictures of one subject.
        gallery: Features of real pictures of all subjects.
        own: Which of these show the subject of the queries.
        exclude_self: The queries are the subject's own pictures of the gallery, in order; each is
            left out of the gallery that it ranks.

    Raises:
        ValueError: If a query has no own picture to find, or nothing to tell it from.

    Source: Finer-Personalization Rank (arXiv:2512.19026) ranks a gallery by features of networks
    that are trained to identify; here they are DINO's.
    """
    count = int(own.sum()) - exclude_self
    if count < 1 or len(gallery) - exclude_self <= count:
        raise ValueError("A gallery needs an own picture to find, and one of something else.")
    if exclude_self and len(queries) != count + 1:
        raise ValueError(f"{len(queries)} queries are not the {count + 1} own pictures.")
    columns = own.nonzero().flatten()
    truth = unit(gallery).T
    precisions: list[Tensor] = []
    hits: list[Tensor] = []
    start = 0
    for rows in chunks(queries):
        cosines = unit(rows) @ truth
        numbers = torch.arange(len(rows))
        if exclude_self:
            left_out = columns[start : start + len(rows)]
            cosines[numbers, left_out] = -torch.inf
        precision = torch.zeros(len(rows), dtype=torch.float64)
        for column in columns:  # one at a time: no n x own x m tensor
            beside = cosines >= cosines[:, column, None]
            kept = cosines[:, column].isfinite()
            precision += kept * (beside & own).sum(1).double() / beside.sum(1)
        best = cosines == cosines.amax(1, keepdim=True)
        precisions.append(precision / count)
        hits.append((best & own).sum(1).double() / best.sum(1))
        start += len(rows)
    return torch.cat(precisions), torch.cat(hits)
