"""Intervals against the theory of means, and against a plain loop."""

import numpy as np
import pytest

from eval.metrics.bootstrap import Estimate, estimate


def test_the_interval_of_one_subject_is_that_of_a_mean() -> None:
    """The bootstrap distribution of a mean is normal, with the standard error of the sample."""
    scores = np.random.default_rng(0).normal(0.6, 0.1, size=400)
    got = estimate([scores], samples=4000)
    error = scores.std() / len(scores) ** 0.5
    assert got.mean == pytest.approx(scores.mean())
    assert got.low == pytest.approx(scores.mean() - 1.96 * error, abs=0.1 * error)
    assert got.high == pytest.approx(scores.mean() + 1.96 * error, abs=0.1 * error)


@pytest.mark.parametrize("aggregate", ["macro", "micro"])
def test_subjects_and_their_pictures_are_resampled(aggregate: str) -> None:
    rng = np.random.default_rng(1)
    subjects = [rng.normal(place, 0.05, size=n) for place, n in ((0.2, 4), (0.5, 9), (0.9, 30))]
    got = estimate(subjects, aggregate=aggregate, samples=8000)
    means = []
    for _ in range(8000):
        drawn = [subjects[index] for index in rng.integers(3, size=3)]
        again = [own[rng.integers(len(own), size=len(own))] for own in drawn]
        whole = np.concatenate(again).mean()
        means.append(np.mean([own.mean() for own in again]) if aggregate == "macro" else whole)
    low, high = np.quantile(means, [0.025, 0.975])
    assert (got.low, got.high) == pytest.approx((low, high), abs=0.02)
    assert got.high - got.low > 0.4  # three subjects say little of a fourth


def test_the_same_call_gives_the_same_interval_and_pairing_narrows_it() -> None:
    rng = np.random.default_rng(2)
    before = rng.normal(0.5, 0.2, size=200)
    after = before + rng.normal(0.02, 0.01, size=200)
    difference = estimate([after - before])
    assert difference == estimate([after - before])
    assert difference.low > 0
    ours, theirs = estimate([before]), estimate([after])
    assert ours.high > theirs.low  # each alone could not tell


def test_an_estimate_is_formatted() -> None:
    assert str(Estimate(0.12345, 0.1, 0.2)) == "0.123 [0.100, 0.200]"
