"""The scores of a concept's pictures before and after its concept file is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from eval.metrics.bootstrap import Estimate
from eval.protocols.prompts import PlannedPicture
from eval.report.comparison import compare_results
from eval.report.verdict import Answer, verdict, verdict_json
from eval.result import FORMAT, Result

REPORT_JSON, REPORT_PNG, REPORT_HTML = "report.json", "report.png", "report.html"
PICTURES = "pictures"
"""Files of a report, and its folder of pictures."""


@dataclass(frozen=True)
class PictureSet:
    """All pictures of one model, ordered by seed: of the concept, and of other prompts."""

    concept: list[PlannedPicture]
    others: list[PlannedPicture]

    @property
    def planned(self) -> list[PlannedPicture]:
        """All pictures of both kinds."""
        return self.concept + self.others


@dataclass(frozen=True)
class BeforeAfter:
    """Scores without and with a concept.

    Attributes:
        name: Token and class, as in prompts.
        base: Scores of the base's pictures.
        adapted: Scores of the pictures with the concept loaded, from the same prompts and seeds.
        others: Scores of other prompts, as `eval.protocols.others` names them.
        real: Scores of the training pictures against the real ones, by metric.
        facts: How the concept was trained and how pictures were generated.
        other_changes: Change of the CLIP-T of other prompts by way of drawing; {} in older files.
    """

    name: str
    base: Result
    adapted: Result
    others: Mapping[str, float]
    real: Mapping[str, float]
    facts: Mapping[str, Any]
    other_changes: Mapping[str, Estimate] = field(default_factory=dict[str, Estimate])

    @cached_property
    def gains(self) -> dict[str, Estimate]:
        """Score of the adapted model less score of the base, over the pictures of both."""
        samples = self.adapted.protocol.bootstrap_samples
        both = {"before": self.base, "after": self.adapted}
        return compare_results(both, samples=samples).differences["after"]

    @property
    def verdict(self) -> list[Answer]:
        """The report in words."""
        return verdict(
            self.gains,
            self.others,
            self.other_changes.get("adapted"),
            base=self.base.means,
            real=self.real,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the content of the report file."""
        return {
            "format": FORMAT,
            "name": self.name,
            "verdict": verdict_json(self.verdict),
            "gains": {metric: asdict(value) for metric, value in self.gains.items()},
            "others": dict(self.others),
            "other_changes": {way: asdict(value) for way, value in self.other_changes.items()},
            "real": dict(self.real),
            **self.facts,
            "adapted": self.adapted.as_json(),
            "base": self.base.as_json(),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> BeforeAfter:
        """Return the scores of a report file, without its facts.

        Raises:
            KeyError: If a part is missing.
            ValueError: If there is no picture.
        """
        base, adapted = (Result.from_json(content[which]) for which in ("base", "adapted"))
        changes = {w: Estimate(**v) for w, v in content.get("other_changes", {}).items()}
        return cls(content["name"], base, adapted, content["others"], content["real"], {}, changes)
