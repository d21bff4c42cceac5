"""The result of scoring: the scores of every picture, their means, and how they were computed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from eval.config import ProtocolConfig
from eval.metrics import METRICS
from eval.metrics.bootstrap import Estimate, estimate
from eval.report.verdict import Answer, verdict
from loldu import __version__
from loldu.errors import LoLDUError

FORMAT = "loldu-eval-1"
LIBRARIES = ("torch", "torchvision", "transformers", "pillow")


@dataclass(frozen=True)
class ScoredPicture:
    """A generated picture.

    Attributes:
        path: Path of the picture, or only its name if the result was read from a file.
        prompt: Prompt, or None if it is unknown.
        scores: Score by metric.
        nearest: Real picture that is most similar by DINO.
    """

    path: Path
    prompt: str | None
    scores: Mapping[str, float]
    nearest: Path


@dataclass(frozen=True)
class ScoredSubject:
    """The pictures of one concept, and the number of real pictures they were compared with.

    `judged` has the agreement of a judge's repeats and its answers in another form, by metric.
    """

    name: str
    pictures: Sequence[ScoredPicture]
    real: int
    judged: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])

    def values(self, metric: str) -> np.ndarray:
        """Return the scores of all pictures by one metric."""
        return np.array([picture.scores[metric] for picture in self.pictures])


@dataclass(frozen=True)
class Result:
    """A set of subjects, scored with the same options.

    Attributes:
        subjects: Scored subjects.
        protocol: Options that decide the scores.
        encoders: Identity of each encoder, as in `Identity.as_json`.
        token: String that was removed from the prompts, or None.
        skipped: Reason for each picture that was left out.
        judge: Name and weights of the judge, or None.
    """

    subjects: Sequence[ScoredSubject]
    protocol: ProtocolConfig
    encoders: Mapping[str, Any]
    token: str | None
    skipped: Mapping[str, str]
    judge: str | None = None

    @property
    def metrics(self) -> list[str]:
        """Names of the metrics that every picture has."""
        scored = [picture.scores for subject in self.subjects for picture in subject.pictures]
        return [metric for metric in METRICS if all(metric in scores for scores in scored)]

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """Mean and interval of every metric over all subjects."""
        return {metric: self._estimate(self.subjects, metric) for metric in self.metrics}

    @property
    def means(self) -> dict[str, float]:
        """Mean of every metric over all subjects."""
        return {metric: value.mean for metric, value in self.estimates.items()}

    @property
    def verdict(self) -> list[Answer]:
        """Answers that need no pictures of the base."""
        shares = {"near_copies", "collapse"} & self.estimates.keys()
        return verdict({name: self.estimates[name] for name in shares})

    def of_subject(self, subject: ScoredSubject) -> dict[str, Estimate]:
        """Return mean and interval of every metric for one subject."""
        return {metric: self._estimate([subject], metric) for metric in self.metrics}

    def _estimate(self, subjects: Sequence[ScoredSubject], metric: str) -> Estimate:
        return estimate(
            [subject.values(metric) for subject in subjects],
            aggregate=self.protocol.aggregate,
            samples=self.protocol.bootstrap_samples,
        )

    def as_json(self) -> dict[str, Any]:
        """Return the content of a result file, which has file names but no paths."""
        return {
            "format": FORMAT,
            "scores": {metric: asdict(value) for metric, value in self.estimates.items()},
            "protocol": {**asdict(self.protocol), "token": self.token},
            "extractors": dict(self.encoders),
            "skipped": dict(self.skipped),
            **({"judge": self.judge} if self.judge else {}),
            "versions": {"loldu": __version__, **{name: version(name) for name in LIBRARIES}},
            "subjects": {
                subject.name: {
                    "scores": {m: float(subject.values(m).mean()) for m in self.metrics},
                    "real": subject.real,
                    **({"judge": subject.judged} if subject.judged else {}),
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
    def from_json(cls, content: Mapping[str, Any]) -> Result:
        """Return the result of a file's content.

        Raises:
            KeyError: If a part is missing.
            ValueError: If there is no picture.
        """
        protocol = dict(content["protocol"])
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
                subject.get("judge", {}),
            )
            for name, subject in content["subjects"].items()
        ]
        if not subjects or not all(subject.pictures for subject in subjects):
            raise ValueError("There is no picture.")
        encoders = dict(content["extractors"])
        scored = {name for subject in subjects for p in subject.pictures for name in p.scores}
        for encoder in (encoder for name in scored for encoder in METRICS[name].encoders):
            if encoder not in encoders:
                raise KeyError(encoder)
        options = ProtocolConfig(**protocol)
        skipped, judge = content["skipped"], content.get("judge")
        return cls(subjects, options, encoders, token, skipped, judge)


def read_result(path: Path) -> Result:
    """Read a result file, or the part of an adapter's report that was drawn with the adapter.

    Raises:
        LoLDUError: If there is no such file, or it is not a result.
    """
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        content = content.get("adapted", content)
        if content["format"] != FORMAT:
            raise LoLDUError(
                f"{path} has the format {content['format']}, but this version reads {FORMAT}; "
                "score the pictures again."
            )
        return Result.from_json(content)
    except FileNotFoundError as error:
        raise LoLDUError(
            f"There is no file {path}; give a file that --json or a report wrote."
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LoLDUError(
            f"{path} is not a result that can be compared; give a file that --json of images or "
            "suite wrote, or the report.json of an adapter."
        ) from error
