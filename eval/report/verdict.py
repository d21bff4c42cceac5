"""A report in words. These rules are the only ones: pages, result files and the studio share them.

A rule reads the mean difference "with the concept less without it" and its 95% interval. A score
rose for certain if its interval lies above 0, and fell for certain if it lies below.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from eval.metrics import METRICS
from eval.metrics.bootstrap import Estimate

_HALF_WAY, _NOT_AT_ALL, _A_LITTLE, _MANY, _MOST = 0.5, 0.01, 0.03, 0.25, 0.5
LIKENESS = ("dino", "clip_i")
LOOKS, OBEYS, HURTS = "Looks like it", "Obeys the prompt", "Hurts other prompts"
COPIES, MIXES = "Copies a training picture", "Mixes or loses subjects"
CERTAIN = "For certain: the 95% interval of the change leaves out 0."

RULES = {
    LOOKS: {
        "yes": "DINO or CLIP-I rises for certain, neither falls for certain, and one covers at "
        "least half of the way from the base to real pictures",
        "partly": "the same, but less than half of the way",
        "no": "one falls for certain and neither rises",
        "as before": "anything else",
    },
    OBEYS: {
        "better": "CLIP-T rises for certain",
        "as before": "neither",
        "less than before": "it falls for certain",
    },
    HURTS: {
        "no": f"the CLIP-T of other prompts falls by at most {_NOT_AT_ALL:g}",
        "perhaps": "it falls by more, but not for certain",
        "a little": f"it falls for certain, by at most {_A_LITTLE:g}",
        "yes": "it falls by more",
    },
    COPIES: {
        "no": "the share of near-copies is not larger than without the concept. A near-copy is far "
        "nearer to a training picture than any two of those are to each other",
        "perhaps": "it rises, but not for certain",
        "some pictures": "it rises for certain",
        "yes": f"the interval of the rise lies above {_MANY:g}",
    },
    MIXES: {
        "no": "every picture of several subjects shows each of them in its place",
        "some pictures": "some miss a subject, or show another one in its place",
        "yes": f"the interval of the share of such pictures lies above {_MOST:g}",
    },
}
"""Answers to each question, and the case for each answer."""

_GOOD = {
    (LOOKS, "yes"),
    (OBEYS, "better"),
    (OBEYS, "as before"),
    (HURTS, "no"),
    (COPIES, "no"),
    (MIXES, "no"),
}
_BAD = {
    (LOOKS, "no"),
    (LOOKS, "as before"),
    (OBEYS, "less than before"),
    (HURTS, "yes"),
    (COPIES, "yes"),
    (MIXES, "yes"),
}


@dataclass(frozen=True)
class Answer:
    """An answer to a question about a concept.

    Attributes:
        question: Question, without a question mark.
        answer: One to three words.
        evidence: Numbers that the rule read.
    """

    question: str
    answer: str
    evidence: str

    @property
    def tone(self) -> str:
        """Return "good", "fair" or "bad", for the color."""
        key = self.question, self.answer
        return "good" if key in _GOOD else "bad" if key in _BAD else "fair"

    @property
    def rule(self) -> list[str]:
        """Sentences that say when each answer is given."""
        cases = RULES[self.question].items()
        return [*(f"{answer.capitalize()}: {case}." for answer, case in cases), CERTAIN]


def verdict(
    gains: Mapping[str, Estimate],
    others: Mapping[str, float] | None = None,
    change: Estimate | None = None,
    *,
    base: Mapping[str, float] | None = None,
    real: Mapping[str, float] | None = None,
) -> list[Answer]:
    """Return the answer to each question that there are scores for.

    Args:
        gains: Score with the concept less score of the base, by metric; without a base, the score
            of shares that are best at 0.
        others: CLIP-T of other prompts, as `base` and `adapted`.
        change: Difference of these with its interval; without it, their means decide.
        base: Scores of the base, by metric.
        real: Scores of real pictures, by metric; without them "partly" is no answer.
    """
    answers: list[Answer] = []
    likeness = {name: gains[name] for name in LIKENESS if name in gains}
    if likeness:
        answers.append(_looks(likeness, base or {}, real or {}))
    if "clip_t" in gains:
        answers.append(_obeys(gains["clip_t"]))
    if others and others.keys() >= {"base", "adapted"}:
        mean = others["adapted"] - others["base"]
        answers.append(_hurts(change or Estimate(mean, mean, mean)))
    if "near_copies" in gains:
        answers.append(_copies(gains["near_copies"]))
    if "collapse" in gains:
        answers.append(_mixes(gains["collapse"]))
    return answers


def verdict_json(answers: Sequence[Answer]) -> dict[str, dict[str, str]]:
    """Return the answers for a result file, by question, such as `looks_like_it`."""
    return {
        one.question.lower().replace(" ", "_"): {
            "answer": one.answer,
            "evidence": one.evidence,
            "rule": " ".join(one.rule),
        }
        for one in answers
    }


def _looks(
    likeness: Mapping[str, Estimate], base: Mapping[str, float], real: Mapping[str, float]
) -> Answer:
    rose = [name for name, gain in likeness.items() if _rose(gain)]
    fell = any(map(_fell, likeness.values()))
    way = {
        name: likeness[name].mean / (real[name] - base[name])
        for name in likeness
        if name in real and name in base and real[name] > base[name]
    }
    if bool(rose) == fell:
        answer = "as before"
    elif fell:
        answer = "no"
    else:
        covered = [way[name] for name in rose if name in way]
        answer = "partly" if covered and max(covered) < _HALF_WAY else "yes"
    parts = [
        f"{METRICS[name].title} {gain.as_change()}"
        + (f", {max(way[name], 0):.0%} of the way to real pictures" if name in way else "")
        for name, gain in likeness.items()
    ]
    return Answer(LOOKS, answer, "; ".join(parts))


def _obeys(gain: Estimate) -> Answer:
    answer = "better" if _rose(gain) else "less than before" if _fell(gain) else "as before"
    return Answer(OBEYS, answer, f"CLIP-T {gain.as_change()}")


def _hurts(change: Estimate) -> Answer:
    if -change.mean <= _NOT_AT_ALL:
        answer = "no"
    elif not _fell(change):
        answer = "perhaps"
    else:
        answer = "a little" if -change.mean <= _A_LITTLE else "yes"
    return Answer(HURTS, answer, f"CLIP-T of other prompts {change.as_change()}")


def _copies(gain: Estimate) -> Answer:
    if gain.mean <= 0:
        answer = "no"
    elif not _rose(gain):
        answer = "perhaps"
    else:
        answer = "yes" if gain.low > _MANY else "some pictures"
    return Answer(COPIES, answer, f"Share of near-copies {gain.as_change()}")


def _mixes(share: Estimate) -> Answer:
    answer = "no" if share.mean == 0 else "yes" if share.low > _MOST else "some pictures"
    return Answer(MIXES, answer, f"Share of such pictures {share}")


def _rose(gain: Estimate) -> bool:
    return gain.low > 0


def _fell(gain: Estimate) -> bool:
    return gain.high < 0
