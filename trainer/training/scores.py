"""Scores of a run in progress: draw pictures, score them, plot the curves, keep the best step."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from eval.metrics import METRICS
from eval.protocols.live import LiveScorer, Pictures
from eval.report.figures import COLORS, Curve, Panel, draw_curves
from loldu.base.draw import sample_images
from loldu.base.source import quiet
from loldu.errors import LoLDUError
from loldu.files import png_bytes
from loldu.pictures.folder import CaptionedImage
from loldu.pictures.open import load_image
from trainer.options.config import Config
from trainer.options.scores import BestBy
from trainer.results.manifest import Manifest
from trainer.results.output_dir import forget_after
from trainer.results.places import BEST, SCORES, SCORES_OF_BEST, read_best
from trainer.training.cache import on_device
from trainer.training.checkpoint import saving
from trainer.training.scoring_plan import PromptSeed, ScoringPlan, make_plan
from trainer.training.validation import VALIDATION

logger = logging.getLogger(__name__)

PICTURE = "scores.png"


@runtime_checkable
class Scorer(Protocol):
    """Anything that scores validation pictures, such as `LiveScorer`."""

    def score(self, pictures: Pictures) -> dict[str, float]:
        """Return the scores of one step by name."""
        ...


def balance(scores: Mapping[str, Any]) -> float:
    """Return likeness, obedience and damage as one number.

    balance = (dino + clip_i) / 2 + clip_t - drift, by the `balance` weight of each metric
    """
    weights = {name: metric.balance for name, metric in METRICS.items() if metric.balance}
    return sum((weight * scores[name] for name, weight in weights.items()), start=0.0)


class LiveScores:
    """The scores of one concept, from validation to validation.

    It writes `validation.jsonl` with a line a step, `validation/scores.png` with the curves, and
    the folder `best` with the result and the scores of the best step.
    """

    def __init__(
        self,
        config: Config,
        plan: ScoringPlan,
        instances: Sequence[CaptionedImage],
        scorer: Scorer,
    ) -> None:
        """Score a concept.

        Args:
            config: Options of the concept.
            plan: Pictures to draw.
            instances: Training pictures.
            scorer: Scores the pictures.
        """
        self._config = config
        self._plan = plan
        self._true = [load_image(instance.path) for instance in instances]
        self._scorer = scorer
        self._base: list[Image.Image] = []
        self._folder = config.run.output_dir
        self._manifest = Manifest(self._folder)

    def see_base(self, pipeline: DiffusionPipeline) -> None:
        """Draw the base's pictures of other prompts; call it before the base is changed."""
        self._base = self._draw(pipeline, self._plan.others, {})

    @property
    def of_base(self) -> dict[PromptSeed, Image.Image]:
        """The base's pictures of other prompts, which are also those of a concept not called."""
        return dict(zip(self._plan.others, self._base, strict=True))

    def resume(self, step: int) -> None:
        """Remove the scores of later steps, which will be measured again."""
        forget_after(self._folder / SCORES, step)

    def measure(
        self,
        pipeline: DiffusionPipeline,
        step: int,
        device: torch.device,
        drawn: Mapping[PromptSeed, Image.Image],
    ) -> dict[str, float]:
        """Score one step, and write its line and the curves; `drawn` pictures are reused."""
        with on_device(pipeline, device):
            concept = self._draw(pipeline, self._plan.concept, drawn)
            others = self._draw(pipeline, self._plan.others, drawn)
        pictures = Pictures(self._true, concept, self._plan.prompts, others, self._base)
        scores = {name: round(value, 6) for name, value in self._scorer.score(pictures).items()}
        lines = [*read_scores(self._folder), {"step": step, **scores}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        self._manifest.write(self._folder / SCORES, text)
        picture = png_bytes(curves(lines, self._config.scores.keep_best))
        self._manifest.write(self._folder / VALIDATION / PICTURE, picture)
        listed = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        logger.info("Scores at step %d: %s", step, listed)
        return scores

    def keep_best(
        self, step: int, scores: Mapping[str, float], save: Callable[[Path], object]
    ) -> None:
        """Save the result if no earlier step was better; step 0 is the base and does not count."""
        by = self._config.scores.keep_best
        best = read_best(self._folder)
        if by is None or step == 0 or (best and value_by(by, scores) <= value_by(by, best)):
            return
        record = {"step": step, "by": by, "value": round(value_by(by, scores), 6), **scores}
        with saving(self._folder / BEST, 0), self._manifest.drafted(self._folder / BEST) as folder:
            save(folder)
            text = json.dumps(record, indent=2) + "\n"
            (folder / SCORES_OF_BEST).write_text(text, encoding="utf-8")
        logger.info("Best step so far by %s: saved to %s", by, self._folder / BEST)

    def _draw(
        self,
        pipeline: DiffusionPipeline,
        planned: Sequence[PromptSeed],
        drawn: Mapping[PromptSeed, Image.Image],
    ) -> list[Image.Image]:
        run = self._config.run
        missing = [pair for pair in planned if pair not in drawn]
        images = sample_images(
            pipeline,
            [prompt for prompt, _ in missing],
            [seed for _, seed in missing],
            num_inference_steps=run.num_inference_steps,
            guidance_scale=run.guidance_scale,
            resolution=self._config.instance.resolution,
            progress=False,
        )
        found = {**drawn, **dict(zip(missing, images, strict=True))}
        return [found[pair] for pair in planned]


def live_scores(
    config: Config,
    configs: Mapping[str, Config],
    instances: Mapping[str, Sequence[CaptionedImage]],
    scorer: Scorer | None,
    device: torch.device,
) -> dict[str, LiveScores]:
    """Return the scores of every concept by name, or {} without `--validation_scores`.

    Args:
        config: Options of the run.
        configs: Options of each concept.
        instances: Training pictures of each concept.
        scorer: Scores the pictures; a `LiveScorer` if None.
        device: Device of the scorer's encoders.

    Raises:
        LoLDUError: If the prompts of a concept cannot be scored, or weights are missing.
    """
    if not config.scores.validation_scores:
        return {}
    plans = {name: make_plan(own) for name, own in configs.items()}
    scorer = scorer or load_scorer(config, device)
    return {
        name: LiveScores(own, plans[name], instances[name], scorer) for name, own in configs.items()
    }


def load_scorer(config: Config, device: torch.device) -> Scorer:
    """Load the models that score pictures.

    Raises:
        LoLDUError: If weights are missing.
    """
    with quiet():
        return LiveScorer(config.scores.clip, config.scores.dino, device)


def optional_scorer(config: Config, device: torch.device) -> tuple[Config, Scorer | None]:
    """Load the scorer of `--scores_optional`; without its weights, return options without scores.

    The scorer is None if the run has no scores, or if they are not optional.
    """
    if not (config.scores.validation_scores and config.scores.scores_optional):
        return config, None
    try:
        return config, load_scorer(config, device)
    except LoLDUError as error:
        logger.warning("Training without scores. %s", error)
        without = replace(config.scores, validation_scores=False, keep_best=None)
        return replace(config, scores=without), None


def value_by(by: BestBy, scores: Mapping[str, Any]) -> float:
    """Return the value that `--keep_best` maximizes."""
    return balance(scores) if by == "balance" else scores[by]


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """Return the lines of a run's `validation.jsonl`, oldest first."""
    path = folder / SCORES
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scores_at(folder: Path, step: int) -> dict[str, float] | None:
    """Return the scores of a step, or None if it was not scored."""
    for line in read_scores(folder):
        if line["step"] == step:
            return {name: value for name, value in line.items() if name != "step"}
    return None


def curves(lines: Sequence[Mapping[str, Any]], by: BestBy | None) -> Image.Image:
    """Draw the scores against steps, with a mark at the best step by `by`."""
    steps = [line["step"] for line in lines]
    later = [line for line in lines if line["step"] > 0]
    best = max(later, key=lambda line: value_by(by, line)) if by and later else None
    panels = []
    for name in [key for key in lines[-1] if key != "step"]:
        curve = Curve("", COLORS[1], steps, [line[name] for line in lines])
        mark = (best["step"], best[name]) if best else None
        metric = METRICS.get(name)
        title = f"{metric.title}: {metric.meaning}" if metric else name
        panels.append(Panel(title, [curve], mark))
    title = f"Scores at {len(lines)} steps"
    if best:
        title += f"; marked: step {best['step']}, the best by {by}"
    return draw_curves(title, panels, columns=2)
