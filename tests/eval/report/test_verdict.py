"""Reports in words, by the rules of the module."""

import pytest

from eval.metrics.bootstrap import Estimate
from eval.report.verdict import HURTS, LOOKS, OBEYS, verdict

UP, DOWN, SAME = ((0.1, 0.02, 0.2), (-0.1, -0.2, -0.02), (0.0, -0.1, 0.1))
"""Mean, low and high of a difference."""


def estimates(**gains: tuple[float, float, float]) -> dict[str, Estimate]:
    return {name: Estimate(*values) for name, values in gains.items()}


@pytest.mark.parametrize(
    ("dino", "clip_i", "answer"),
    [
        (UP, UP, "yes"),
        (UP, SAME, "yes"),
        (SAME, UP, "yes"),
        (UP, DOWN, "as before"),
        (SAME, SAME, "as before"),
        (DOWN, SAME, "no"),
        (DOWN, DOWN, "no"),
    ],
)
def test_likeness(dino: tuple, clip_i: tuple, answer: str) -> None:
    assert verdict(estimates(dino=dino, clip_i=clip_i), {}) == {LOOKS: answer}


@pytest.mark.parametrize(
    ("gain", "answer"), [(UP, "better"), (SAME, "as before"), (DOWN, "less than before")]
)
def test_obedience(gain: tuple, answer: str) -> None:
    assert verdict(estimates(clip_t=gain), {}) == {OBEYS: answer}


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [(0.7, 0.75, "no"), (0.7, 0.695, "no"), (0.7, 0.68, "a little"), (0.7, 0.6, "yes")],
)
def test_harm(before: float, after: float, answer: str) -> None:
    assert verdict({}, {"base": before, "adapted": after}) == {HURTS: answer}
