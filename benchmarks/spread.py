"""Repeated measurements in three numbers."""

import sys
from collections.abc import Iterable, Sequence
from statistics import median


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, least and greatest, to four digits, or end the command where there are none.

    Raises:
        SystemExit: Nothing was measured.
    """
    ordered = sorted(values)
    if not ordered:
        sys.exit("Nothing was timed: give every --repetitions a number of at least 1.")
    found = {"median": median(ordered), "min": ordered[0], "max": ordered[-1]}
    return {name: float(f"{value:.4g}") for name, value in found.items()}


def ratio(times: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """Return how many times as long something took, taken within each repetition."""
    return spread(a / b for a, b in zip(times, to, strict=True))
