"""What was measured: every picture's scores, their means and intervals, and how it was done."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from eval.config import ProtocolConfig
from eval.metrics.bootstrap import Estimate, estimate
from loldu import __version__
from loldu.errors import LoLDUError

FORMAT = "loldu-eval-1"
METRICS = {
    "dino": "DINO",
    "clip_i": "CLIP-I",
    "clip_t": "CLIP-T",
    "diversity": "diversity",
}
"""Names and titles, in the order of tables."""
LIBRARIES = ("torch", "torchvision", "transformers", "pillow")


@dataclass(frozen=True)
class ScoredPicture:
    """A generated picture.

    Attributes:
        path: Where it is; of a result that was read from a file, its name.
        prompt: What it was asked for, where that is known.
        scores: By metric.
        nearest: The real picture most like it by DINO.
    """

    path: Path
    prompt: str | None
    scores: Mapping[str, float]
    nearest: Path


@dataclass(frozen=True)
class ScoredSubject:
    """The pictures of one concept, and how many real ones they were compared with."""

    name: str
    pictures: Sequence[ScoredPicture]
    real: int

    def values(self, metric: str) -> np.ndarray:
        """One metric of every picture."""
        return np.array([picture.scores[metric] for picture in self.pictures])


@dataclass(frozen=True)
class Result:
    """One set of subjects, scored in one way.

    Attributes:
        subjects: What was scored.
        protocol: The options that decide the numbers.
        extractors: What looked at the pictures, as `Identity.as_json` has it.
        token: What was left out of the prompts.
        skipped: Pictures that were left out, and why.
    """

    subjects: Sequence[ScoredSubject]
    protocol: ProtocolConfig
    extractors: Mapping[str, Any]
    token: str | None
    skipped: Mapping[str, str]

    @property
    def metrics(self) -> list[str]:
        """The metrics that every picture has."""
        scored = [picture.scores for subject in self.subjects for picture in subject.pictures]
        return [metric for metric in METRICS if all(metric in scores for scores in scored)]

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Mean and interval of every metric."""
        return {metric: self._estimate(self.subjects, metric) for metric in self.metrics}

    def of_subject(self, subject: ScoredSubject) -> dict[str, Estimate]:
        """Mean and interval of one subject."""
        return {metric: self._estimate([subject], metric) for metric in self.metrics}

    def _estimate(self, subjects: Sequence[ScoredSubject], metric: str) -> Estimate:
        return estimate(
            [subject.values(metric) for subject in subjects],
            aggregate=self.protocol.aggregate,
            samples=self.protocol.bootstrap_samples,
        )

    def as_json(self) -> dict[str, Any]:
        """The whole of it for a file; of paths only the names."""
        return {
            "format": FORMAT,
            "scores": {metric: asdict(value) for metric, value in self.estimates.items()},
            "protocol": {**asdict(self.protocol), "token": self.token},
            "extractors": dict(self.extractors),
            "skipped": dict(self.skipped),
            "versions": {"loldu": __version__, **{name: version(name) for name in LIBRARIES}},
            "subjects": {
                subject.name: {
                    "scores": {m: float(subject.values(m).mean()) for m in self.metrics},
                    "real": subject.real,
                    "pictures": [
                        {
                            "name": picture.path.name,
                            "prompt": picture.prompt,
                            **{m: round(value, 6) for m, value in picture.scores.items()},
                            "nearest": picture.nearest.name,
                        }
                        for picture in subject.pictures
                    ],
                }
                for subject in self.subjects
            },
        }

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Result:
        """What `as_json` gave.

        Raises:
            KeyError: If a part is missing.
            ValueError: If there is no picture in it.
        """
        protocol = dict(told["protocol"])
        token = protocol.pop("token")
        subjects = [
            ScoredSubject(
                name,
                [
                    ScoredPicture(
                        Path(picture["name"]),
                        picture["prompt"],
                        {metric: picture[metric] for metric in METRICS if metric in picture},
                        Path(picture["nearest"]),
                    )
                    for picture in subject["pictures"]
                ],
                subject["real"],
            )
            for name, subject in told["subjects"].items()
        ]
        if not subjects or not all(subject.pictures for subject in subjects):
            raise ValueError("There is no picture in it.")
        extractors = {kind: told["extractors"][kind] for kind in ("dino", "clip")}
        return cls(subjects, ProtocolConfig(**protocol), extractors, token, told["skipped"])


def read_result(path: Path) -> Result:
    """Read a result; of a report of an adapter, the part that was drawn with the adapter.

    Raises:
        LoLDUError: If there is no such file, or it is something else.
    """
    try:
        told: Any = json.loads(path.read_text(encoding="utf-8"))
        told = told.get("adapted", told)
        if told["format"] != FORMAT:
            raise LoLDUError(
                f"{path} has the format {told['format']} and this version reads {FORMAT}; score "
                "the pictures again."
            )
        return Result.from_json(told)
    except FileNotFoundError as error:
        raise LoLDUError(f"There is no file {path}; give what --json or a report wrote.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoLDUError(
            f"{path} is no result that can be compared; give what --json of images or suite "
            "wrote, or the report.json of an adapter."
        ) from error


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row is the heading, and whose first column alone is left-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def score_rows(result: Result) -> list[list[str]]:
    """A heading, a row for each subject, and one for all of them where there are several."""
    rows = [["subject", "pictures", "real", *(METRICS[m] for m in result.metrics)]]
    for subject in result.subjects:
        scores = map(str, result.of_subject(subject).values())
        rows.append([subject.name, str(len(subject.pictures)), str(subject.real), *scores])
    if len(result.subjects) > 1:
        count = sum(len(subject.pictures) for subject in result.subjects)
        total = sum(subject.real for subject in result.subjects)
        scores = map(str, result.estimates.values())
        rows.append([f"all ({result.protocol.aggregate})", str(count), str(total), *scores])
    return rows
