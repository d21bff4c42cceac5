"""The interface of a metric, and the registry that tables, pages, curves and the studio read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

Tensor = Any
"""A `torch.Tensor`. torch is not imported here: help texts and pages read the registry without it.
"""
Pairs = Literal["all", "matched"]
Aggregate = Literal["macro", "micro"]
"""Whether every subject or every picture has the same weight in a mean."""
Against = Literal["real", "training", "gallery", "prompt", "siblings", "base"]
"""The other side of a comparison: real pictures of the concept, its training pictures, real
pictures of all subjects, the pictures' own prompts, other pictures of the same prompt, or pictures
of the base from the same prompts and seeds."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Pictures to score, as features: for each encoder one row a picture.

    Attributes:
        generated: Features of the generated pictures, by encoder.
        real: Features of the concept's real pictures, by encoder; with `pairs` "matched", the real
            picture of each generated one.
        training: Features of the concept's training pictures, by encoder.
        gallery: Features of real pictures of all subjects and of look-alikes, by encoder.
        gallery_own: Which pictures of the gallery show the concept.
        base: Features of the base's pictures of the same prompts and seeds, by encoder.
        prompts: Prompt of each generated picture, None where it is unknown.
        prompt_features: CLIP features of the prompts without the rare token, or None.
        context_features: CLIP features of the prompts without token and class, or None.
        pairs: Compare every generated picture with every real one, or one with one by position.
        exclude_self: Whether `generated`, `real` and `training` are the same pictures, and the
            concept's own of the gallery; a picture is then not compared with itself.
        clip_t_scale: Factor of CLIPScore, or None for raw cosines.
        together: For each subject that the prompts ask for in one picture, DINO features of its
            region in each generated picture (zeros without the subject), and of its real pictures
            without their background.
        judged: Scores of a judge by metric.
        memo: Scores that several metrics need, by metric.
    """

    generated: Mapping[str, Tensor]
    real: Mapping[str, Tensor] | None = None
    training: Mapping[str, Tensor] | None = None
    gallery: Mapping[str, Tensor] | None = None
    gallery_own: Tensor | None = None
    base: Mapping[str, Tensor] | None = None
    prompts: Sequence[str | None] = ()
    prompt_features: Tensor | None = None
    context_features: Tensor | None = None
    pairs: Pairs = "all"
    exclude_self: bool = False
    clip_t_scale: float | None = None
    together: Sequence[tuple[Tensor, Tensor]] = ()
    judged: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    memo: dict[str, Tensor] = field(default_factory=dict[str, Tensor], init=False)


class Metric(ABC):
    """A score of generated pictures. Subclasses set the attributes and implement `scores`.

    Attributes:
        name: Key in JSON files, and the value of `--keep_best`.
        title: Heading in tables and charts.
        aspect: Question that the metric answers, for a reader who does not know it.
        meaning: What it measures, in a few words.
        higher_is_better: Direction.
        against: What generated pictures are compared with. Metrics against the base score the
            pictures of other prompts, all others score the concept's.
        encoders: Names of the encoders whose features it reads (`eval.encoders.load.ENCODERS`).
        headline: Whether it is also measured during training, drawn in the report's picture and
            shown in the studio. The others are in tables and files only.
        balance: Weight in the `balance` by which training may keep its best step.
        of_real: Whether the score of real pictures, each against the others, says something.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    aspect: ClassVar[str]
    meaning: ClassVar[str]
    higher_is_better: ClassVar[bool] = True
    against: ClassVar[Against]
    encoders: ClassVar[tuple[str, ...]]
    headline: ClassVar[bool] = True
    balance: ClassVar[float] = 0.0
    of_real: ClassVar[bool] = True

    @property
    def heading(self) -> str:
        """Title with a capital letter, for a chart."""
        return self.title[0].upper() + self.title[1:]

    @property
    def explanation(self) -> str:
        """Meaning and direction, for a legend."""
        return f"{self.meaning}; {'higher' if self.higher_is_better else 'lower'} is better"

    def applies(self, sample: Sample) -> bool:
        """Return whether the sample has the features, and what to compare the pictures with."""
        if not all(name in sample.generated for name in self.encoders):
            return False
        if self.against == "siblings":
            return min(Counter(sample.prompts).values(), default=0) > 1
        needed = {
            "real": sample.real,
            "training": sample.training,
            "gallery": sample.gallery,
            "prompt": sample.prompt_features,
            "base": sample.base,
        }
        return needed[self.against] is not None

    @abstractmethod
    def scores(self, sample: Sample) -> Tensor:
        """Return one fp64 score for each generated picture.

        Raises:
            ValueError: If there are no pictures to compare.
        """

    def score(self, sample: Sample) -> float:
        """Return the mean score of the pictures."""
        return self.scores(sample).mean().item()


METRICS: dict[str, Metric] = {}
"""Every metric by name, in the order of tables."""


def register(metric: type[Metric]) -> type[Metric]:
    """Add a metric to `METRICS`; use it as a class decorator.

    Raises:
        ValueError: If the name is taken.
    """
    if metric.name in METRICS:
        raise ValueError(f"There is a metric {metric.name} already.")
    METRICS[metric.name] = metric()
    return metric


def headline_metrics() -> list[Metric]:
    """Return the metrics that are measured during training and shown in charts."""
    return [metric for metric in METRICS.values() if metric.headline]
