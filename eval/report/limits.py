"""Limits of scores (`--fail_under`), so that a build can fail when a concept got worse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from eval.metrics import METRICS
from loldu.errors import LoLDUError, hint


def parse_limits(texts: Sequence[str]) -> dict[str, float]:
    """Return the limit of each metric from `NAME=NUMBER`.

    Raises:
        LoLDUError: If a text has another form, or names an unknown metric.
    """
    limits: dict[str, float] = {}
    for text in texts:
        name, _, number = text.partition("=")
        if name not in METRICS:
            raise LoLDUError(f"--fail_under {text}: {name} is no score; {hint(name, METRICS)}.")
        try:
            limits[name] = float(number)
        except ValueError:
            limits[name] = math.nan
        if not math.isfinite(limits[name]):
            raise LoLDUError(f"--fail_under {text} is not like {name}=0.6; give a number.")
    return limits


def check_limits(
    texts: Sequence[str], means: Mapping[str, float]
) -> tuple[dict[str, dict[str, Any]], str]:
    """Compare means with their limits.

    A score for which lower is better, such as drift, fails above its limit. One that was not
    measured fails too.

    Args:
        texts: Limits, as `NAME=NUMBER`.
        means: Mean of each metric.

    Returns:
        Limit, mean and `passed` of each metric, for a result file; and a sentence about the failed
        ones, or "".
    """
    checked: dict[str, dict[str, Any]] = {}
    failed: list[str] = []
    for name, limit in parse_limits(texts).items():
        mean = means.get(name)
        higher = METRICS[name].higher_is_better
        passed = mean is not None and (mean >= limit if higher else mean <= limit)
        checked[name] = {"limit": limit, "mean": mean, "passed": passed}
        if mean is None:
            failed.append(f"{name} was not measured")
        elif not passed:
            side = "under" if higher else "over"
            failed.append(f"{name} is {mean:.3f}, {side} its limit {limit:g}")
    return checked, f"{'; '.join(failed)}." if failed else ""
