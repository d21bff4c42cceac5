"""Compare results picture by picture: what differs, and by how much."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

from eval.metrics import METRICS
from eval.metrics.bootstrap import Estimate, estimate
from eval.result import Result
from loldu.errors import LoLDUError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Comparison:
    """Results, cut to the pictures that all of them have.

    Attributes:
        results: Results by name; the others are compared with the first.
        differences: For each other result and metric, its score less the score of the first.
    """

    results: dict[str, Result]
    differences: dict[str, dict[str, Estimate]]

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that all results have."""
        return [m for m in METRICS if all(m in result.metrics for result in self.results.values())]


def compare_results(results: dict[str, Result], *, samples: int = 2000) -> Comparison:
    """Pair the pictures of results by subject and file name, and return their differences.

    Raises:
        LoLDUError: If the results were scored in different ways, or share no picture.
    """
    names = list(results)
    for name in names[1:]:
        _check_alike(names[0], results[names[0]], name, results[name])
    shared = _shared(results)
    differences = {
        name: {
            metric: estimate(
                [
                    ours.values(metric) - theirs.values(metric)
                    for ours, theirs in zip(
                        shared[name].subjects, shared[names[0]].subjects, strict=True
                    )
                ],
                aggregate=shared[name].protocol.aggregate,
                samples=samples,
            )
            for metric in shared[name].metrics
            if metric in shared[names[0]].metrics
        }
        for name in names[1:]
    }
    return Comparison(shared, differences)


def _check_alike(first: str, a: Result, second: str, b: Result) -> None:
    """Raise an error if two results were scored with different encoders or options."""
    for kind in [kind for kind in a.encoders if kind in b.encoders]:
        ours, theirs = (
            {key: value for key, value in result.encoders[kind].items() if key != "library"}
            for result in (a, b)
        )
        for key in ("weights", "preprocess"):
            if ours[key] != theirs[key]:
                raise LoLDUError(
                    f"{first} and {second} cannot be compared: {kind} has different {key} "
                    f"({ours['name']}, {theirs['name']}); score both with the same --{kind}."
                )
    if a.judge != b.judge and a.judge and b.judge:
        raise LoLDUError(
            f"{first} and {second} cannot be compared: their judges are {a.judge} and {b.judge}; "
            "score both with the same --judge."
        )
    deciding = ("pairs", "clip_t_scale", "keep_token", "aggregate")
    for key in deciding:
        ours, theirs = getattr(a.protocol, key), getattr(b.protocol, key)
        if ours != theirs:
            raise LoLDUError(
                f"{first} and {second} cannot be compared: --{key} was {ours} and {theirs}; score "
                "both with the same value."
            )


def _shared(results: dict[str, Result]) -> dict[str, Result]:
    """Return the results with only the pictures that all have, in the same order."""
    if all(len(result.subjects) == 1 for result in results.values()):
        # Each is of one folder: compare those, whatever their names are.
        (first,) = next(iter(results.values())).subjects
        results = {
            name: replace(result, subjects=[replace(result.subjects[0], name=first.name)])
            for name, result in results.items()
        }
    names_of = {
        name: {(s.name, p.path.name) for s in result.subjects for p in s.pictures}
        for name, result in results.items()
    }
    shared = set.intersection(*names_of.values())
    if not shared:
        raise LoLDUError(
            "The results have no picture in common: pictures are paired by subject and file name; "
            "generate both from the same prompts and seeds."
        )
    left = max(len(own) for own in names_of.values()) - len(shared)
    if left:
        logger.warning("Left out %d pictures that some results lack.", left)

    def cut(result: Result) -> Result:
        subjects = []
        for subject in sorted(result.subjects, key=lambda subject: subject.name):
            own = [p for p in subject.pictures if (subject.name, p.path.name) in shared]
            if own:
                own.sort(key=lambda picture: picture.path.name)
                subjects.append(replace(subject, pictures=own))
        return replace(result, subjects=subjects)

    return {name: cut(result) for name, result in results.items()}
