"""The diagonal: its start, the norm of its change of the weight, and the ball of allowed norms."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loldu.adapter.factorization import FACTORIZATIONS

DiagonalInit = Literal[
    "ldu",
    "uniform",
    "normal",
    "constant",
    "zeros",
    "ones",
    "standard_uniform",
    "standard_normal",
]
DIAGONAL_INITS: tuple[str, ...] = get_args(DiagonalInit)


def initial_diagonal(
    init: DiagonalInit, diagonal: Float[Tensor, " r"], generator: torch.Generator
) -> Float[Tensor, " r"]:
    """Return the value z starts from, given the diagonal d of the base weight.

    "ldu" is d itself, "uniform" U(-|mean d|/2, |mean d|/2), "normal" N(mean d, std d),
    "constant" mean d, then 0, 1, U(-1, 1) and N(0, 1).

    Args:
        init: Name of the initial value.
        diagonal: d of the base weight; directions that were dropped (d = 0) stay zero.
        generator: Random numbers, on the CPU so that they do not depend on the device.

    Source: LoLDU, Sec. IV-E and Table V.
    """
    d = diagonal.cpu()
    mean = d.mean()
    uniform = torch.rand(d.shape, generator=generator) * 2 - 1
    normal = torch.randn(d.shape, generator=generator)
    std = d.std() if d.numel() > 1 else torch.zeros(())
    values: dict[str, Tensor] = {
        "ldu": d,
        "uniform": uniform * mean.abs() / 2,
        "normal": mean + std * normal,
        "constant": mean.expand_as(d),
        "zeros": torch.zeros_like(d),
        "ones": torch.ones_like(d),
        "standard_uniform": uniform,
        "standard_normal": normal,
    }
    return torch.where(d == 0, 0.0, values[init]).to(diagonal.device)


def layer_generator(seed: int, layer: str) -> torch.Generator:
    """Return a CPU generator for one layer; it depends on nothing but the seed and the name."""
    digest = hashlib.sha256(f"{seed}/{layer}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def gram(left: Float[Tensor, "out r"], right: Float[Tensor, "r in"]) -> Float[Tensor, "r r"]:
    """Return ``G = (Bᵀ B) ∘ (A Aᵀ)``, the metric with ``‖delta_W‖_F² = deltaᵀ G delta``."""
    left, right = left.to(torch.float64), right.to(torch.float64)
    return (left.T @ left) * (right @ right.T)


def delta_norm(delta: Float[Tensor, " r"], metric: Float[Tensor, "r r"]) -> Float[Tensor, ""]:
    """Return ``‖delta_W‖_F = sqrt(deltaᵀ G delta)`` exactly, at the cost of r²."""
    delta = delta.to(metric.dtype)
    # Rounding may leave the result for a tiny delta slightly below zero.
    return (delta @ metric @ delta).clamp_min(0).sqrt()


def projection_factor(
    delta: Float[Tensor, " r"], metric: Float[Tensor, "r r"], max_delta_norm: float | int
) -> Float[Tensor, ""]:
    """Return the factor that brings delta back onto the ball ``‖delta_W‖_F <= max_delta_norm``.

    The Euclidean projection onto a ball around 0 is a rescale: 1 inside, radius / norm outside.
    It stays on the device, so that the host does not wait for it.

    Source: LoLDU, Eq. (10)-(12).
    """
    norm = delta_norm(delta, metric)
    return torch.where(norm > max_delta_norm, max_delta_norm / norm, 1.0)


class LoLDUDiagonal(nn.Module):
    """The trained diagonal of an adapter in a layer: ``delta = sigma_0 u dz + ds (u dz + z_ref)``.

    The trained parameters are offsets that start at zero, so that delta is exactly zero at step 0
    in every dtype and weight decay pulls toward the base model. z_ref is the value z starts from;
    it has an effect only with a trained scale. A perturbing residual, which keeps d instead, adds
    the constant ``sigma_0 (z_ref - d)``. The units u are 1, or chosen so that a step along any
    direction changes the weight by the same amount.

    Source: LoLDU, Eq. (8), written in offsets.
    """

    dz: nn.Parameter
    ds: nn.Parameter | None
    z_ref: Tensor | None
    perturbation: Tensor | None
    unit: Tensor | None
    pivots: Tensor | None

    def __init__(
        self,
        r: int,
        sigma_0: float,
        *,
        factorization: str,
        train_scale: bool,
        perturbs: bool,
        has_units: bool,
    ) -> None:
        """Make a diagonal of r zeros; the layer or a checkpoint fills the buffers.

        Args:
            r: Number of directions.
            sigma_0: Initial scale.
            factorization: Name of the factorization, which decides on the shape of the pivots.
            train_scale: Whether ds and z_ref exist.
            perturbs: Whether delta starts at another value than zero.
            has_units: Whether directions have units of their own.
        """
        super().__init__()
        self.sigma_0 = sigma_0
        self.factorization = factorization
        self.dz = nn.Parameter(torch.zeros(r))
        self.ds = nn.Parameter(torch.zeros(1)) if train_scale else None
        self.register_buffer("z_ref", torch.zeros(r) if train_scale else None)
        self.register_buffer("perturbation", torch.zeros(r) if perturbs else None)
        self.register_buffer("unit", torch.ones(r) if has_units else None)
        axes = FACTORIZATIONS[factorization].pivot_axes
        pivots = torch.zeros(axes, r, dtype=torch.int32).squeeze(0) if axes else None
        self.register_buffer("pivots", pivots)

    def forward(self) -> Float[Tensor, "*rows r"]:
        """Return delta, with its graph.

        A call through `torch.func.functional_call` may give dz a row for every row of a batch;
        delta then has these rows too.

        It is computed in a call of the module, so that the hooks of offloading load its values.
        """
        dz = self.dz if self.unit is None else self.unit * self.dz
        delta = dz if self.sigma_0 == 1 else self.sigma_0 * dz
        if self.ds is not None and self.z_ref is not None:
            delta = torch.addcmul(delta, self.ds, dz + self.z_ref)
        return delta if self.perturbation is None else delta + self.sigma_0 * self.perturbation

    def delta(self) -> Float[Tensor, "*rows r"]:
        """Return the change of the diagonal, with its graph."""
        return self()

    @torch.no_grad()
    def set_delta(self, delta: Float[Tensor, " r"]) -> None:
        """Set delta, with sigma at its initial value."""
        if self.ds is not None:
            self.ds.zero_()
        target = delta / self.sigma_0
        if self.perturbation is not None:
            target = target - self.perturbation
        self.dz.copy_(target if self.unit is None else target / self.unit)

    @torch.no_grad()
    def shrink(self, factor: Float[Tensor, ""]) -> None:
        """Multiply delta by a factor, and move sigma toward its initial value by the same factor.

        A factor of 1 leaves every bit as it is.
        """
        target = factor * self.delta()
        sigma: float | Tensor = self.sigma_0
        if self.perturbation is not None:
            target -= self.sigma_0 * self.perturbation
        if self.ds is not None and self.z_ref is not None:
            self.ds.mul_(factor)
            target -= self.ds * self.z_ref
            sigma = self.sigma_0 + self.ds
        if self.unit is not None:
            sigma = sigma * self.unit
        self.dz.copy_(torch.where(factor == 1, self.dz, target / sigma))

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LoLDUDiagonal":
        """Move between devices, not between dtypes: trained parameters are always float32."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)
