"""The updates of a layer in one pass: a sum of adapters, or a mixture for every row."""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from loldu.adapter.functional import factored_update
from loldu.adapter.shared_factors import SharedFactors

BASE_NAME = "__base__"
"""PEFT's name for no adapter, in a mixed batch."""

Mixture = str | Mapping[str, float | int] | None
"""The adapters of a row: one by name, several with a factor on the strength of each, or none."""


class Update(NamedTuple):
    """An addition to the output of the base layer: ``B (delta ⊙ (A x))``.

    Attributes:
        factors: B and A.
        delta: Change of the diagonal: one for all rows, one for every row of the batch, or one for
            every token of every row.
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


@dataclass(frozen=True, eq=False)
class Rows:
    """The adapters of the rows of a batch, as numbers: other rows need no new compiled graph.

    Attributes:
        names: The adapters.
        places: The adapters of every row, as places in `names`.
        factors: Factors on the strengths of these adapters; 0 where a row has fewer.
        blank: Rows of the base alone that come before these rows.
        same: Whether all rows but the blank ones have the same adapters and factors.
        gates: Further factors, one for every token of a row; None for 1.
    """

    names: tuple[str, ...]
    places: Int[Tensor, "rows most"]
    factors: Float[Tensor, "rows most"]
    blank: int
    same: bool
    gates: Float[Tensor, "rows tokens most"] | None = None

    @classmethod
    def of(
        cls,
        mixtures: Sequence[Mixture],
        names: Iterable[str] | None = None,
        blank: int = 0,
        gates: Sequence[Mapping[str, Sequence[float | int]]] | None = None,
    ) -> "Rows":
        """Number the adapters of every row.

        Args:
            mixtures: The adapters of every row.
            names: All adapters that a compiled graph should serve; those of the rows by default.
            blank: Rows of the base alone that come before these rows.
            gates: For every row, the factors of its tokens on the strength of an adapter; an
                adapter without them acts on all tokens in full. Only for layers whose input has
                these tokens.
        """
        rows = [_factors(mixture) for mixture in mixtures]
        known = tuple(sorted({name for row in rows for name in row}) if names is None else names)
        most = max(1, *(len(row) for row in rows))
        places, factors = (
            torch.zeros(len(rows), most, dtype=torch.long),
            torch.zeros(len(rows), most),
        )
        for i, row in enumerate(rows):
            for j, (name, factor) in enumerate(row.items()):
                places[i, j], factors[i, j] = known.index(name), factor
        if (tokens := next((len(g) for own in gates or () for g in own.values()), None)) is None:
            return cls(known, places, factors, blank, all(row == rows[0] for row in rows))
        of_tokens = torch.ones(len(rows), tokens, most)
        for i, (row, own) in enumerate(zip(rows, gates or (), strict=True)):
            for j, name in enumerate(row):
                of_tokens[i, :, j] = torch.tensor(own.get(name, [1.0] * tokens))
        return cls(known, places, factors, blank, False, of_tokens)

    def __len__(self) -> int:
        """Return the number of rows, the blank ones included."""
        return self.blank + len(self.places)

    def to(self, device: torch.device) -> "Rows":
        """Return the same rows with their numbers on a device."""
        gates = None if self.gates is None else self.gates.to(device)
        moved = replace(self, places=self.places.to(device), factors=self.factors.to(device))
        return replace(moved, gates=gates)

    def deltas(self, deltas: Mapping[str, Tensor], times: int) -> Float[Tensor, "*rows r"]:
        """Return the delta of every row, or the one delta of all rows but the blank ones.

        With gates every token of every row has its own.

        Args:
            deltas: Delta by adapter; the other adapters change nothing.
            times: How often the batch repeats the rows.
        """
        r = max(delta.numel() for delta in deltas.values())
        nothing = next(iter(deltas.values())).new_zeros(r)
        known = [_padded(deltas[y], r) if y in deltas else nothing for y in self.names]
        places, factors = self.places.to(nothing.device), self.factors.to(nothing)
        if self.same:
            places, factors = places[0], factors[0]
        own = torch.stack(known)[places]
        if self.gates is not None:
            own, factors = own[:, None], factors[:, None] * self.gates.to(nothing)
        mixed = (own * factors[..., None]).sum(-2)
        if self.same:
            return mixed
        more = mixed.dim() - 1
        return F.pad(mixed, (*(0, 0) * more, self.blank, 0)).repeat(times, *(1,) * more)


def updates_of_rows(parts: Mapping[str, Update], rows: Rows, times: int) -> list[Update]:
    """Return the updates of a batch whose rows have their own adapters.

    Adapters that share factors cost no more than one. A row without an adapter gets a delta of
    zeros, which leaves its output equal bit by bit.

    Args:
        parts: The update of each adapter.
        rows: The adapters of the rows.
        times: How often the batch repeats the rows.
    """
    groups: dict[tuple[SharedFactors, float], dict[str, Tensor]] = {}
    for name, (factors, delta, dropout) in parts.items():
        groups.setdefault((factors, dropout), {})[name] = delta
    return [
        Update(factors, rows.deltas(deltas, times), dropout)
        for (factors, dropout), deltas in groups.items()
    ]


def _factors(mixture: Mixture) -> dict[str, float]:
    if mixture is None or mixture == BASE_NAME:
        return {}
    if isinstance(mixture, str):
        return {mixture: 1.0}
    return {name: float(factor) for name, factor in mixture.items() if factor != 0}


def _padded(delta: Float[Tensor, " smaller"], r: int) -> Float[Tensor, " r"]:
    missing = r - delta.numel()
    return F.pad(delta, (0, missing)) if missing else delta


def times_in_batch(rows: Rows, batch: int, layer_name: str) -> int:
    """Return how often a batch repeats the rows: row i of it is row ``i % N`` of N.

    With guidance the batch holds the pictures more than once, one copy after the other.

    Raises:
        ValueError: If the size of the batch is not a multiple of the number of rows.
    """
    times, left_over = divmod(batch, len(rows))
    if left_over or (rows.blank and times != 1):
        raise ValueError(
            f"set_concepts gave {len(rows)} concepts, and layer '{layer_name}' was given a "
            f"batch of {batch}: draw one picture for every concept (as many prompts as concepts), "
            "or end it with set_concepts(pipeline, None)"
        )
    return times


def rows_by_name(adapter_names: Sequence[Mixture] | Rows, batch: int) -> Rows:
    """Return the rows for PEFT's `adapter_names`; "__base__" is the base alone.

    Raises:
        ValueError: If there is not one name for every row.
    """
    if len(adapter_names) != batch:
        raise ValueError(
            "Length of `adapter_names` should be the same as the number of inputs, but got "
            f"{len(adapter_names)} and {batch} respectively."
        )
    return adapter_names if isinstance(adapter_names, Rows) else Rows.of(adapter_names)
