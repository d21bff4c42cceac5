"""SVFit's factors: a rank-r SVD, computed in float64 and rounded to float32."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import torch
from jaxtyping import Float
from torch import Tensor

from loldu.adapter.factors import Factorization, Factors, require_finite, to_float64


def svd(weight: Float[Tensor, "out in"], r: int) -> Factors:
    """Return the rank-r SVD factors ``B = U[:, :r]``, ``d = S[:r]``, ``A = Vᵀ[:r]`` of a weight.

    The sign that an SVD leaves open is fixed by making the largest entry of each column of U
    positive. Singular vectors whose values nearly coincide may still rotate into each other
    when W is rounded or another linear algebra library is used: LDU pivots have no such freedom.

    Args:
        weight: The base weight W, any floating dtype.
        r: Number of directions, clamped to the smaller side of W.

    Raises:
        ValueError: If the weight has entries that are not finite.

    Source: SVFit.
    """
    require_finite(weight.detach())
    rank = min(r, *weight.shape)
    u, s, vh = torch.linalg.svd(to_float64(weight), full_matrices=False)
    u, s, vh = u[:, :rank], s[:rank], vh[:rank]
    sign = torch.where(torch.take_along_dim(u, u.abs().argmax(0, keepdim=True), 0) < 0, -1.0, 1.0)
    device = weight.device
    return Factors(
        (u * sign).to(torch.float32).to(device),
        s.to(torch.float32).to(device),
        (vh * sign.T).to(torch.float32).to(device),
        None,
    )


def _factorize(weight: Float[Tensor, "out in"], r: int, _: Tensor | None) -> Factors:
    return svd(weight, r)


SVD = Factorization("svd", "svd", _factorize)
