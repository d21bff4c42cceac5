"""The diagonal: where it starts, how far it has moved the weight, and the ball it must stay in."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import hashlib
from collections.abc import Callable
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loldu.adapter.factorization import Pivoting

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
        diagonal: d of the base weight, whichever the factorization; directions that were
            dropped (d = 0) stay zero.
        generator: Source of the draws, on the CPU so that they do not depend on the device.

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
    """Return a CPU generator for the draws of one layer, whatever was drawn before it."""
    digest = hashlib.sha256(f"{seed}/{layer}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def gram(left: Float[Tensor, "out r"], right: Float[Tensor, "r in"]) -> Float[Tensor, "r r"]:
    """Return ``G = (Bᵀ B) ∘ (A Aᵀ)``, the metric in which delta has the norm of its weight."""
    left, right = left.to(torch.float64), right.to(torch.float64)
    return (left.T @ left) * (right @ right.T)


def delta_norm(delta: Float[Tensor, " r"], metric: Float[Tensor, "r r"]) -> Float[Tensor, ""]:
    """Return ``‖delta_W‖_F = sqrt(deltaᵀ G delta)`` exactly, at the cost of r²."""
    delta = delta.to(metric.dtype)
    # Rounding may leave the form of a tiny delta a hair below zero.
    return (delta @ metric @ delta).clamp_min(0).sqrt()


def projection_factor(
    delta: Float[Tensor, " r"], metric: Float[Tensor, "r r"], max_delta_norm: float | int
) -> Float[Tensor, ""]:
    """Return the factor that brings delta back onto the ball ``‖delta_W‖_F <= max_delta_norm``.

    The Euclidean projection onto a ball around 0 is a rescale: 1 inside, radius / norm outside.
    It stays on the device, so that the host need not wait for it.

    Source: LoLDU, Eq. (10)-(12).
    """
    norm = delta_norm(delta, metric)
    return torch.where(norm > max_delta_norm, max_delta_norm / norm, 1.0)


class LoLDUDiagonal(nn.Module):
    """What one adapter trains in a layer: ``delta = sigma_0 u dz + ds (u dz + z_ref)``.

    The trainables are offsets that start at zero, so that delta is exactly zero at step 0 in
    every dtype and weight decay pulls toward the base model. z_ref is the value z starts from, and
    matters beside a trained scale alone; a perturbing residual, which keeps d instead, adds the
    constant ``sigma_0 (z_ref - d)``. The units u are 1, or such that a step along any direction
    changes the weight as much.

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
        pivoting: Pivoting | None,
        train_scale: bool,
        perturbs: bool,
        has_units: bool,
    ) -> None:
        """Make a diagonal of r zeros, whose buffers are for the layer or a checkpoint to fill.

        Args:
            r: Number of directions.
            sigma_0: Start of the scale.
            pivoting: How the pivots are chosen, or None for an SVD, which has none.
            train_scale: Whether ds and z_ref exist.
            perturbs: Whether delta starts off zero.
            has_units: Whether directions have units of their own.
        """
        super().__init__()
        self.sigma_0 = sigma_0
        self.pivoting: Pivoting | None = pivoting
        self.dz = nn.Parameter(torch.zeros(r))
        self.ds = nn.Parameter(torch.zeros(1)) if train_scale else None
        self.register_buffer("z_ref", torch.zeros(r) if train_scale else None)
        self.register_buffer("perturbation", torch.zeros(r) if perturbs else None)
        self.register_buffer("unit", torch.ones(r) if has_units else None)
        shape = (2, r) if pivoting == "complete" else (r,)
        pivots = None if pivoting is None else torch.zeros(shape, dtype=torch.int32)
        self.register_buffer("pivots", pivots)

    def forward(self) -> Float[Tensor, " r"]:
        """Return delta, with its graph.

        It is computed in a call of the module, so that hooks which bring offloaded values in do.
        """
        dz = self.dz if self.unit is None else self.unit * self.dz
        delta = dz if self.sigma_0 == 1 else self.sigma_0 * dz
        if self.ds is not None and self.z_ref is not None:
            delta = torch.addcmul(delta, self.ds, dz + self.z_ref)
        return delta if self.perturbation is None else delta + self.sigma_0 * self.perturbation

    def delta(self) -> Float[Tensor, " r"]:
        """Return the change of the diagonal, with its graph."""
        return self()

    @torch.no_grad()
    def set_delta(self, delta: Float[Tensor, " r"]) -> None:
        """Make delta this one, with sigma at its start."""
        if self.ds is not None:
            self.ds.zero_()
        target = delta / self.sigma_0
        if self.perturbation is not None:
            target = target - self.perturbation
        self.dz.copy_(target if self.unit is None else target / self.unit)

    @torch.no_grad()
    def shrink(self, factor: Float[Tensor, ""]) -> None:
        """Multiply delta by a factor, moving sigma toward its start by the same factor.

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
        """Move between devices, never between dtypes: trainables are float32 in every mode."""

        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)
