"""The factor pair that all adapters of a layer share."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from loldu.adapter.diagonal import gram
from loldu.adapter.factors import Factors


def version_of(tensor: Tensor) -> tuple[int, int]:
    """Return a value that changes when a tensor is replaced or written to (except by `.data`)."""
    return tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version


def unwrapped(tensor: Tensor) -> Tensor:
    """Return the values that `torch.func` wraps; an ensemble stacks those of its models."""
    functorch: Any = torch._C._functorch  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    while functorch.is_functorch_wrapped_tensor(tensor):
        tensor = functorch.get_unwrapped(tensor)
    return tensor


@dataclass(eq=False)
class SharedFactors:
    """One factor pair of a layer's weight, in the dtype of the layer.

    In half precision, rows of `right` are scaled to at most 1 by powers of two, which is exact, and
    delta is multiplied by `gain` instead: a small pivot cannot overflow.
    """

    factorization: str
    left: Float[Tensor, "out r"]
    right: Float[Tensor, "r in"]
    gain: Float[Tensor, " r"]
    diagonal: Float[Tensor, " r"]
    pivots: Int[Tensor, " r"] | Int[Tensor, "2 r"] | None
    rescaled: bool

    def __post_init__(self) -> None:
        """Make the factors parameters, whose sizes no compiler takes for variables."""
        self.left = nn.Parameter(self.left, requires_grad=False)
        self.right = nn.Parameter(self.right, requires_grad=False)
        self.gain = nn.Parameter(self.gain, requires_grad=False)

    @classmethod
    def of(cls, factors: Factors, factorization: str, dtype: torch.dtype) -> "SharedFactors":
        """Round a factor pair to the dtype of the layer."""
        left, diagonal, right = factors.left, factors.diagonal, factors.right
        gain, rescaled = torch.ones_like(diagonal), dtype in (torch.float16, torch.bfloat16)
        if rescaled:
            _, exponent = torch.frexp(right.abs().amax(1))
            gain = torch.ldexp(gain, exponent)
            right = right / gain[:, None]
        return cls(
            factorization,
            left.to(dtype),
            right.to(dtype),
            gain,
            diagonal,
            factors.pivots,
            rescaled,
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
        """Return the pivots of the first directions, or None without pivots."""
        return None if self.pivots is None else self.pivots[..., :rank]

    def begins_with(self, pivots: Tensor | None, rank: int) -> bool:
        """Return whether these factors hold `rank` directions, at all of the given pivots."""
        if rank > self.rank:
            return False
        if pivots is None or self.pivots is None:
            return True
        wanted = pivots[..., :rank].cpu().long()
        return torch.equal(wanted, self.pivots[..., :rank].expand_as(wanted))

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
