"""Means over pictures and subjects, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

from eval.metrics.metric import Aggregate

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean, and the interval that contains it in 95 of 100 resamplings."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return mean and interval with three digits, for a table."""
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def as_change(self) -> str:
        """Return mean and interval of a difference, with their signs."""
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def mean_of(subjects: Sequence[Float64[np.ndarray, " _"]], aggregate: Aggregate) -> float:
    """Return the mean score.

        macro: mean of the subjects' means: every subject has the same weight
        micro: mean over all pictures: every picture has the same weight

    Args:
        subjects: Scores of each subject, a number a picture.
        aggregate: "macro" or "micro".

    Raises:
        ValueError: If there is no subject, or a subject has no score.
    """
    if not subjects or not all(len(scores) for scores in subjects):
        raise ValueError("There must be a subject, and each subject needs a score.")
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
    """Return the mean and its percentile interval; subjects, then their pictures, are resampled.

    Pass differences of two results, picture by picture, to get the interval of their paired
    difference. With one subject only the pictures are resampled, so the interval says nothing about
    other subjects.

    Args:
        subjects: Scores of each subject, a number a picture.
        aggregate: "macro" or "micro", as in `mean_of`.
        samples: Number of resamplings.
        seed: Seed of the resampling; the same call returns the same interval.

    Raises:
        ValueError: If there is no subject, or a subject has no score.

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
