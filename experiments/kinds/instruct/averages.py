"""How the rows of an evaluation become its score."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import mean


def percent(items: Sequence[tuple[str, float]]) -> float:
    """Every row counts the same."""
    return 100 * mean(value for _, value in items)


def percent_by_kind(items: Sequence[tuple[str, float]]) -> float:
    """Every kind counts the same."""
    kinds: dict[str, list[float]] = defaultdict(list)
    for kind, value in items:
        kinds[kind].append(value)
    return 100 * mean(mean(values) for values in kinds.values())
