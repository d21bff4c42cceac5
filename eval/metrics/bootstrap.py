"""Means over pictures and subjects, and how far chance alone would move them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64

Aggregate = Literal["macro", "micro"]
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean, and the interval in which it lies in 95 of 100 resamplings."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """For a table."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_of(subjects: Sequence[Float64[np.ndarray, " _"]], aggregate: Aggregate) -> float:
    """The mean of scores.

        macro: mean over subjects of each one's mean, so that every subject counts the same
        micro: mean over all pictures, so that every picture does

    Args:
        subjects: Each one's scores, a number a picture.
        aggregate: Which of both.

    Raises:
        ValueError: If there is no subject, or one without a score.
    """
    if not subjects or not all(len(scores) for scores in subjects):
        raise ValueError("Every subject needs a score, and there must be a subject.")
    if aggregate == "micro":
        return float(np.concatenate(subjects).mean())
    return float(np.mean([scores.mean() for scores in subjects]))


def estimate(
    subjects: Sequence[Float64[np.ndarray, " _"]],
    *,
    aggregate: Aggregate = "macro",
    samples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """The mean with its percentile interval, resampling subjects, and pictures within each.

    Differences of two results' scores, picture by picture, give the paired interval of their
    difference. With one subject the pictures alone are resampled: what another subject would have
    given is not in the numbers then.

    Args:
        subjects: Each one's scores, a number a picture.
        aggregate: As in `mean_of`.
        samples: Resamplings.
        seed: Of the resampling: the same call gives the same interval.

    Raises:
        ValueError: As `mean_of` does.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.
    """
    mean = mean_of(subjects, aggregate)
    rng = np.random.default_rng(seed)
    count = len(subjects)
    sums, sizes = np.empty((samples, count)), np.empty((samples, count))
    drawn = rng.integers(count, size=(samples, count))
    for slot in range(count):
        for index, scores in enumerate(subjects):
            rows = np.flatnonzero(drawn[:, slot] == index)
            picked = rng.integers(len(scores), size=(len(rows), len(scores)))
            sums[rows, slot] = scores[picked].sum(axis=1)
            sizes[rows, slot] = len(scores)
    means = sums.sum(1) / sizes.sum(1) if aggregate == "micro" else (sums / sizes).mean(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Estimate(mean, float(low), float(high))
