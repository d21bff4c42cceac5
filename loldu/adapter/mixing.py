"""The updates of a layer in one pass: adapters summed, or every row of the batch with its own."""

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
    """What is added to the base layer's output: ``B (delta ⊙ (A x))``.

    Attributes:
        factors: B and A.
        delta: One for all, or one for every row of the batch.
        dropout: Of the entries of ``A x``.
    """

    factors: SharedFactors
    delta: Float[Tensor, "*rows r"]
    dropout: float = 0.0


def add_updates(
    x: Float[Tensor, "*batch in"], base_output: Float[Tensor, "*batch out"], updates: list[Update]
) -> Float[Tensor, "*batch out"]:
    """Return the output of an adapted layer, given that of its base."""
    for factors, delta, dropout in updates:
        base_output = factored_update(x, base_output, *factors.around(delta), dropout)
    return base_output


def summed(parts: Iterable[Update]) -> list[Update]:
    """Return the updates of adapters that all act on every row, in as few as there can be.

    ``Σ_i B diag(delta_i) A = B diag(Σ_i delta_i) A``: one serves all that share factors, and
    entries to drop.
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
    """Return the updates of a batch in which every row has an adapter of its own, or none.

    A row without one gets a delta of zeros, which adds nothing to any bit of the base's output.
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
    """Return the adapter of every row: concept ``i % N`` of N for row i.

    Guidance shows a model the pictures more than once, one batch of them after the other.

    Raises:
        ValueError: The batch does not fit the concepts.
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
    """Return the adapter of every row as PEFT gives them, none for "__base__".

    Raises:
        ValueError: There is not one for every row.
    """
    if len(adapter_names) != batch:
        raise ValueError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(adapter_names)} and {batch} respectively."
        )
    return tuple(None if name == BASE_NAME else name for name in adapter_names)
