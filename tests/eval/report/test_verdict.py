"""Reports in words, by the rules of the module."""

import pytest

from eval.metrics.bootstrap import Estimate
from eval.report.page import verdict_html
from eval.report.verdict import COPIES, HURTS, LOOKS, OBEYS, verdict, verdict_json

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
    (got,) = verdict(estimates(dino=dino, clip_i=clip_i))
    assert (got.question, got.answer) == (LOOKS, answer)


@pytest.mark.parametrize(
    ("dino", "clip_i", "answer"),
    [
        (0.65, 0.9, "partly"),  # 0.1 of 0.25 and of 0.5
        (0.6, 0.9, "yes"),  # 0.1 of 0.2
        (0.65, 0.55, "yes"),
        (0.3, 0.3, "yes"),  # real pictures score less than the base: no way to cover
    ],
)
def test_likeness_that_covers_less_than_half_of_the_way(
    dino: float, clip_i: float, answer: str
) -> None:
    gains = estimates(dino=UP, clip_i=UP)
    real = {"dino": dino, "clip_i": clip_i}
    (got,) = verdict(gains, base={"dino": 0.4, "clip_i": 0.4}, real=real)
    assert got.answer == answer
    # Half of the way of a score that did not rise for certain is no "yes".
    (got,) = verdict({**gains, "clip_i": Estimate(*SAME)}, base={"dino": 0.4}, real={"dino": 0.7})
    assert got.answer == "partly"
    assert got.evidence == (
        "DINO +0.100 [+0.020, +0.200], 33% of the way to real pictures; "
        "CLIP-I +0.000 [-0.100, +0.100]"
    )


@pytest.mark.parametrize(
    ("gain", "answer"), [(UP, "better"), (SAME, "as before"), (DOWN, "less than before")]
)
def test_obedience(gain: tuple, answer: str) -> None:
    (got,) = verdict(estimates(clip_t=gain))
    assert (got.question, got.answer) == (OBEYS, answer)


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        (0.05, "no"),
        (-0.005, "no"),
        (-0.02, "a little"),
        (-0.1, "yes"),
        ((-0.005, -0.008, -0.002), "no"),
        ((-0.02, -0.05, 0.01), "perhaps"),
        ((-0.1, -0.3, 0.1), "perhaps"),
        ((-0.02, -0.03, -0.01), "a little"),
        ((-0.05, -0.06, -0.04), "yes"),
        ((0.0, 0.0, 0.0), "no"),
    ],
)
def test_harm(change: float | tuple, answer: str) -> None:
    """Means decide only where there is no interval, as in older reports."""
    mean = change[0] if isinstance(change, tuple) else change
    interval = Estimate(*change) if isinstance(change, tuple) else None
    (got,) = verdict({}, {"base": 0.7, "adapted": 0.7 + mean}, interval)
    assert (got.question, got.answer) == (HURTS, answer)


@pytest.mark.parametrize(
    ("gain", "answer"),
    [
        ((0.0, 0.0, 0.0), "no"),
        ((-0.1, -0.2, 0.05), "no"),
        ((0.02, 0.0, 0.06), "perhaps"),  # one picture of 48
        ((0.27, 0.15, 0.4), "some pictures"),
        ((0.5, 0.3, 0.7), "yes"),
    ],
)
def test_copies(gain: tuple, answer: str) -> None:
    (got,) = verdict(estimates(near_copies=gain))
    assert (got.question, got.answer) == (COPIES, answer)


def test_every_answer_has_a_color_and_stands_in_pages_and_result_files() -> None:
    gains = estimates(dino=UP, clip_t=DOWN, near_copies=SAME)
    answers = verdict(gains, {"base": 0.7, "adapted": 0.68}, Estimate(-0.02, -0.03, 0.01))
    assert [one.tone for one in answers] == ["good", "bad", "fair", "good"]
    assert {name: one["answer"] for name, one in verdict_json(answers).items()} == {
        "looks_like_it": "yes",
        "obeys_the_prompt": "less than before",
        "hurts_other_prompts": "perhaps",
        "copies_a_training_picture": "no",
    }
    text = verdict_html(answers)
    for one in answers:
        assert f"<dt>{one.question}</dt><dd><strong>{one.answer}</strong>" in text
        assert one.evidence in text
        assert all(f"<p>{sentence}</p>" in text for sentence in one.rule)
        assert [sentence.partition(":")[0].lower() for sentence in one.rule].count(one.answer) == 1
    assert text.count("<details><summary>Why</summary>") == len(answers)
