"""Factor pairs of a weight, and the record of one way to compute them."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Factors:
    """Two fixed factors and the diagonal between them: ``left · diag(diagonal) · right``.

    Attributes:
        left: B, the columns that an adapter writes to.
        diagonal: d of the base weight; 0 where a direction was dropped.
        right: A, the rows that an adapter reads with.
        pivots: The pivot rows ``(r,)``, the pivot rows and columns ``(2, r)``, or None for a
            factorization without pivots.
    """

    left: Float[Tensor, "out r"]
    diagonal: Float[Tensor, " r"]
    right: Float[Tensor, "r in"]
    pivots: Int[Tensor, " r"] | Int[Tensor, "2 r"] | None


@dataclass(frozen=True)
class Factorization:
    """One way to factor a weight; `register_factorization` adds it to the options of LoLDUConfig.

    Factors are nested: those of a smaller rank are the leading columns and rows.

    Attributes:
        name: Its name in concept files.
        method: The value of `LoLDUConfig.factorization` that selects it. If several share a
            method, `LoLDUConfig.pivoting` selects one by its name.
        factorize: Return the rank-r factors of a weight. If pivots of an earlier call are given,
            the factors must be those at the same pivots.
        pivot_axes: 0 without pivots: the factors follow from the weight alone, in its dtype. 1
            with pivot rows, 2 with pivot rows and columns: they are saved, and pin the factors.
        advice: How to avoid dropped directions, for a warning.
    """

    name: str
    method: str
    factorize: Callable[[Float[Tensor, "out in"], int, Tensor | None], Factors]
    pivot_axes: int = 0
    advice: str = "a smaller rank"


def to_float64(weight: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Return a weight in float64, on the CPU if its device has no float64 (Apple's MPS)."""
    device = torch.device("cpu") if weight.device.type == "mps" else weight.device
    return weight.detach().to(device).to(torch.float64)


def require_finite(weight: Float[Tensor, "..."]) -> None:
    """Check a weight, in one pass without a copy.

    Raises:
        ValueError: If an entry is not finite.
    """
    # An entry that is not finite makes the minimum or the maximum not finite.
    if not all(math.isfinite(float(end)) for end in weight.aminmax()):
        raise ValueError("the weight has entries that are not finite: reload the base model")
