"""Check that a loaded adapter belongs to the base: its pivots and start follow from the weight."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float
from torch import Tensor

from loldu.adapter.diagonal import DiagonalInit, LoLDUDiagonal, initial_diagonal, layer_generator
from loldu.adapter.shared_factors import SharedFactors

# Relative to the norm of d. Pivots of another base differ by more than 1, of a rounded one by less
# than 0.01. Without pivots (an SVD), d of another base may be as close, so it must be the same.
_TOLERANCE, _EXACT_TOLERANCE = 0.1, 1e-6
_GROWN, _MOST_GROWN = 2.0, 0.1
"""Entries of B above `_GROWN` are a share of 0 to 0.04 on the pivots' own weight, rounded to 4 bits
too, and 0.2 to 0.6 on another weight."""

DiagonalStart = tuple[DiagonalInit, int]
"""Name of the initial diagonal, and the seed of a random one."""

_any_base: ContextVar[bool] = ContextVar("any_base", default=False)


@contextmanager
def any_base() -> Generator[None]:
    """Inside the block, PEFT loads adapters onto bases that they were not trained on.

    The numbers of an adapter are coordinates between factors of its own base. On another base they
    mean something else; only on a near relative of it, something similar.
    """
    token = _any_base.set(True)
    try:
        yield
    finally:
        _any_base.reset(token)


def accepts_any_base() -> bool:
    """Return whether the caller is inside `any_base`, or compiles, when nothing is loaded."""
    return _any_base.get() or torch.compiler.is_compiling()


@torch.no_grad()
def fits_weight(
    diagonal: LoLDUDiagonal, shared: SharedFactors, start: DiagonalStart, layer_name: str
) -> bool:
    """Return whether the state of an adapter may belong to the weight of a layer.

    One agreement is enough: start values of another adapter of the same base differ, and pivots of
    a nearly singular weight change with its rounding.

    Args:
        diagonal: The state of the adapter.
        shared: Factors of the weight at the adapter's pivots.
        start: Start of the diagonal that the adapter's configuration names.
        layer_name: The layer's name, for the random numbers of a start.
    """
    r = diagonal.dz.numel()
    fits = start_fits(diagonal, shared.diagonal[:r], start, layer_name)
    if diagonal.pivots is None:
        return fits is not False
    return bool(fits) or pivots_fit(shared.left[:, :r])


@torch.no_grad()
def start_fits(
    diagonal: LoLDUDiagonal, d: Float[Tensor, " r"], start: DiagonalStart, layer_name: str
) -> bool | None:
    """Return whether the stored start of a diagonal follows from d; None if it stores no start."""
    init, seed = start
    tolerance = _EXACT_TOLERANCE if diagonal.pivots is None else _TOLERANCE
    expected = initial_diagonal(init, d, layer_generator(seed, layer_name))
    stored = [
        (saved.to(d.device), here)
        for saved, here in ((diagonal.z_ref, expected), (diagonal.perturbation, expected - d))
        if saved is not None
    ]
    if not stored:
        return None
    return all(bool((saved - h).norm() <= tolerance * h.norm()) for saved, h in stored)


def pivots_fit(left: Float[Tensor, "out r"]) -> bool:
    """Return whether pivots were chosen on a weight, given its factor B at these pivots.

    Pivoting takes the largest entry of a column, so that no entry of B exceeds 1; on another weight
    the same rows hold any entries.
    """
    entries = left.abs()
    grown = (entries > _GROWN).sum() / entries.count_nonzero().clamp_min(1)
    return bool(grown <= _MOST_GROWN)
