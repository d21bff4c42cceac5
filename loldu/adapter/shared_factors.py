"""The factor pair that all adapters of a layer share."""

from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loldu.adapter.diagonal import gram
from loldu.adapter.factorization import Factors, PivotCore, Pivoting, pivot_core

MOST_GROWTH = 2.0
"""How much larger rounding errors may be where factors are left out. Gaussian weights have 1.4."""

LARGEST_IN_HALF = 128.0
"""What an entry of a core may multiply, lest float16 overflows. Gaussian weights have 16."""


def version_of(tensor: Tensor) -> tuple[int, int]:
    """Return what changes whenever a tensor is replaced or written to in place, but by `.data`."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


@dataclass(eq=False)
class SharedFactors:
    """One factor pair of a layer's weight, in the dtype of the layer.

    In half precision, rows of `right` are scaled to at most 1 by powers of two, which is exact, and
    `gain` gives them back to delta: a small pivot cannot overflow. Where no pivot was dropped
    and the pivot columns are the first, a plain layer that reads its own output at the pivot rows
    can do without the two factors.
    """

    pivoting: Pivoting | None
    left: Float[Tensor, "out r"]
    right: Float[Tensor, "r in"]
    gain: Float[Tensor, " r"]
    diagonal: Float[Tensor, " r"]
    pivots: Int[Tensor, " r"] | Int[Tensor, "2 r"] | None
    rescaled: bool
    can_be_left_out: bool
    weight_version: tuple[int, int] | None = None
    _core: PivotCore | None = field(default=None, init=False, repr=False)

    @classmethod
    def of(cls, factors: Factors, pivoting: Pivoting | None, dtype: torch.dtype) -> "SharedFactors":
        """Round a factor pair to the layer's dtype; pivoting None is an SVD."""
        left, diagonal, right = factors.left, factors.diagonal, factors.right
        gain, rescaled = torch.ones_like(diagonal), dtype in (torch.float16, torch.bfloat16)
        if rescaled:
            _, exponent = torch.frexp(right.abs().amax(1))
            gain = torch.ldexp(gain, exponent)
            right = right / gain[:, None]
        of_own_rows = pivoting == "partial" and bool((diagonal != 0).all())
        return cls(
            pivoting,
            left.to(dtype),
            right.to(dtype),
            gain,
            diagonal,
            factors.pivots,
            rescaled,
            of_own_rows,
        )

    @property
    def rank(self) -> int:
        """Number of directions held; every smaller rank is a slice."""
        return self.gain.numel()

    @cached_property
    def metric(self) -> Float[Tensor, "r r"]:
        """G of ``‖delta_W‖_F² = deltaᵀ G delta``, for a delta multiplied by `gain`."""
        return gram(self.left, self.right)

    @property
    def norms(self) -> Float[Tensor, " r"]:
        """Return ``‖B_i‖ ‖A_i‖``: how much 1 in delta changes the weight, by direction."""
        left, right = self.left.to(self.gain.dtype), self.right.to(self.gain.dtype)
        return left.square().sum(0).sqrt() * right.square().sum(1).sqrt() * self.gain

    def core(self, weight: Float[Tensor, "out in"]) -> PivotCore | None:
        """Return what stands in for the factors of a weight, or None if it would be less exact.

        It is made at the first call, and serves only the weight that the factors are of.
        """
        if version_of(weight) != self.weight_version:
            return None
        if self._core is None:
            factors = Factors(
                self.left, self.diagonal, self.right * self.gain[:, None], self.pivots
            )
            core = pivot_core(weight.detach(), factors)
            overflows = self.rescaled and float(core.upper.abs().max()) > LARGEST_IN_HALF
            self.can_be_left_out = core.growth <= MOST_GROWTH and not overflows
            self._core = core if self.can_be_left_out else None
        return self._core

    def around(
        self, delta: Float[Tensor, "*rows r"]
    ) -> tuple[Float[Tensor, "out r"], Float[Tensor, "*rows r"], Float[Tensor, "r in"]]:
        """Return B, delta and A of ``B diag(delta) A``, at the rank of delta."""
        r, left, right = delta.shape[-1], self.left, self.right
        if r < self.rank:
            left, right = left[:, :r], right[:r]
        if self.rescaled:
            delta = delta * self.gain[:r].to(delta.device)
        return left, delta, right

    def pivots_of(self, rank: int) -> Tensor | None:
        """Return the pivots of the first directions; an SVD has none."""
        return None if self.pivots is None else self.pivots[..., :rank]

    def begins_with(self, pivots: Tensor | None, rank: int) -> bool:
        """Whether these factors hold `rank` directions, those of the pivots if any are given."""
        if rank > self.rank:
            return False
        if pivots is None or self.pivots is None:
            return True
        return torch.equal(pivots[..., :rank].cpu().long(), self.pivots[..., :rank])

    def to(self, device: torch.device, dtype: torch.dtype) -> "SharedFactors":
        """Move to a device and a dtype."""
        if (device, dtype) == (self.left.device, self.left.dtype):
            return self
        return replace(
            self,
            left=self.left.to(device, dtype),
            right=self.right.to(device, dtype),
            gain=self.gain.to(device),
            diagonal=self.diagonal.to(device),
        )
