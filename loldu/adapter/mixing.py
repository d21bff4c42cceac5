"""The updates of a layer in one pass: a sum of adapters, or one adapter per row of the batch."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loldu.adapter.functional import factored_update
from loldu.adapter.shared_factors import SharedFactors

BASE_NAME = "__base__"
"""PEFT's name for no adapter, in a mixed batch."""


class Update(NamedTuple):
    """An addition to the output of the base layer: ``B (delta ⊙ (A x))``.

    Attributes:
        factors: B and A.
        delta: Change of the diagonal, one for all rows or one for every row of the batch.
        dropout: Share of the entries of ``A x`` that are set to zero.
    """

    factors: SharedFactors
    delta: Float[Tensor, "*rows r"]
    dropout: float = 0.0


def add_updates(
    x: Float[Tensor, "*batch in"], base_output: Float[Tensor, "*batch out"], updates: list[Update]
) -> Float[Tensor, "*batch out"]:
    """Return the output of an adapted layer from the output of its base."""
    for factors, delta, dropout in updates:
        base_output = factored_update(x, base_output, *factors.around(delta), dropout)
    return base_output


def summed(parts: Iterable[Update]) -> list[Update]:
    """Return the fewest updates that equal the sum of the given ones, on every row.

    ``Σ_i B diag(delta_i) A = B diag(Σ_i delta_i) A``: adapters with the same factors and the same
    dropout need one update.
    """
    total: dict[tuple[SharedFactors, float], Tensor] = {}
    for factors, delta, dropout in parts:
        other = total.get((factors, dropout))
        if other is not None:
            r = max(delta.numel(), other.numel())
            delta = _padded(delta, r) + _padded(other, r)
        total[factors, dropout] = delta
    return [Update(factors, delta, dropout) for (factors, dropout), delta in total.items()]


def per_row(rows: Sequence[Update | None]) -> list[Update]:
    """Return the updates of a batch in which every row has its own adapter, or none.

    A row without an adapter gets a delta of zeros, which leaves its output equal bit by bit.
    """
    ranks: dict[tuple[SharedFactors, float], int] = {}
    for part in rows:
        if part is not None:
            key = part.factors, part.dropout
            ranks[key] = max(part.delta.numel(), ranks.get(key, 0))
    return [Update(key[0], _stacked(rows, key, r), key[1]) for key, r in ranks.items()]


def _stacked(
    rows: Sequence[Update | None], key: tuple[SharedFactors, float], r: int
) -> Float[Tensor, "rows r"]:
    deltas = [y.delta if y is not None and (y.factors, y.dropout) == key else None for y in rows]
    nothing = next(delta for delta in deltas if delta is not None).new_zeros(r)
    return torch.stack([nothing if delta is None else _padded(delta, r) for delta in deltas])


def _padded(delta: Float[Tensor, " smaller"], r: int) -> Float[Tensor, " r"]:
    missing = r - delta.numel()
    return F.pad(delta, (0, missing)) if missing else delta


def rows_of_batch(
    concepts: tuple[str | None, ...] | None, batch: int, layer_name: str
) -> tuple[str | None, ...] | None:
    """Return the adapter of every row: row i has concept ``i % N`` of N.

    With guidance the batch holds the pictures more than once, one copy after the other.

    Raises:
        ValueError: If the size of the batch is not a multiple of the number of concepts.
    """
    if concepts is None:
        return None
    times, left_over = divmod(batch, len(concepts))
    if left_over:
        raise ValueError(
            f"set_concepts gave {len(concepts)} concepts, and layer '{layer_name}' was given a "
            f"batch of {batch}: draw one picture for every concept (as many prompts as concepts), "
            "or end it with set_concepts(pipeline, None)"
        )
    return concepts * times


def rows_by_name(adapter_names: Sequence[str], batch: int) -> tuple[str | None, ...]:
    """Return the adapter of every row from PEFT's `adapter_names`; "__base__" is None.

    Raises:
        ValueError: If there is not one name for every row.
    """
    if len(adapter_names) != batch:
        raise ValueError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(adapter_names)} and {batch} respectively."
        )
    return tuple(None if name == BASE_NAME else name for name in adapter_names)
