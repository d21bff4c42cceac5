"""A report in words.

The rules, on the mean differences "after less before" and their 95 % intervals. A score rose if
its interval lies above 0, and fell if it lies below.

- *Looks like it*: "yes" if DINO or CLIP-I rose and neither fell, "no" if one fell and neither rose,
  and "as before" otherwise.
- *Obeys the prompt*: "better" if CLIP-T rose, "less than before" if it fell, else "as before".
- *Hurts other prompts*: "no" if their CLIP-T fell by at most 0.01, "a little" up to 0.03, else
  "yes".
"""

from collections.abc import Mapping

from eval.metrics.bootstrap import Estimate

LOOKS, OBEYS, HURTS = "Looks like it", "Obeys the prompt", "Hurts other prompts"
_NOT_AT_ALL, _A_LITTLE = 0.01, 0.03


def verdict(gains: Mapping[str, Estimate], others: Mapping[str, float]) -> dict[str, str]:
    """Return the answer to each question that there are scores for.

    Args:
        gains: Score with the concept less score of the base, by metric.
        others: CLIP-T of other prompts, as `base` and `adapted`.
    """
    answers: dict[str, str] = {}
    likeness = [gains[name] for name in ("dino", "clip_i") if name in gains]
    if likeness:
        rose, fell = any(map(_rose, likeness)), any(map(_fell, likeness))
        answers[LOOKS] = "as before" if rose == fell else "yes" if rose else "no"
    if "clip_t" in gains:
        answers[OBEYS] = _obeys(gains["clip_t"])
    if others.keys() >= {"base", "adapted"}:
        answers[HURTS] = _hurts(others)
    return answers


def _obeys(gain: Estimate) -> str:
    if _rose(gain):
        return "better"
    return "less than before" if _fell(gain) else "as before"


def _hurts(others: Mapping[str, float]) -> str:
    loss = others["base"] - others["adapted"]
    if loss <= _NOT_AT_ALL:
        return "no"
    return "a little" if loss <= _A_LITTLE else "yes"


def _rose(gain: Estimate) -> bool:
    return gain.low > 0


def _fell(gain: Estimate) -> bool:
    return gain.high < 0
