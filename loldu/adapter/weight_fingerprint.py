"""Three numbers that tell a base weight from others."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false

import torch
from jaxtyping import Float
from torch import Tensor


def fingerprint(weight: Float[Tensor, "out in"]) -> Float[Tensor, "3"]:
    """Return three numbers that tell a weight from others: its norm and two projections.

    ``(‖W‖, u₁ᵀ W v₁, u₂ᵀ W v₂)`` with fixed cosine vectors, in float64. Unlike a hash it moves only
    by the rounding when the same base is loaded in another dtype.
    """
    exact = weight.detach().cpu().to(torch.float64)
    rows = torch.arange(1, exact.shape[0] + 1, dtype=torch.float64)
    columns = torch.arange(1, exact.shape[1] + 1, dtype=torch.float64)
    first = torch.cos(rows) @ exact @ torch.cos(2 * columns)
    second = torch.cos(3 * rows) @ exact @ torch.cos(columns)
    return torch.stack([exact.norm(), first, second]).to(torch.float32)
