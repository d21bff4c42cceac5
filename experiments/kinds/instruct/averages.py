"""Averages over the rows of an evaluation."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean


def percent(items: Sequence[tuple[str, float]]) -> float:
    """Return the mean over rows, in percent."""
    return 100 * mean(value for _, value in items)


def percent_by_kind(items: Sequence[tuple[str, float]]) -> float:
    """Return the mean over kinds of rows, in percent."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for kind, value in items:
        kinds[kind].append(value)
    return 100 * mean(mean(values) for values in kinds.values())
