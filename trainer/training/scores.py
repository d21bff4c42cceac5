"""Scores of a run in progress: drawn for, written, plotted, and the best step kept."""

import json
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image

from eval.protocols.live import Pictures
from loldu.base.draw import sample_images
from loldu.files import save_png, write_atomically
from loldu.pictures.folder import CaptionedImage
from loldu.pictures.open import load_image
from trainer.options.config import Config
from trainer.options.scores import BestBy
from trainer.results.chart import Line, Panel, draw_chart
from trainer.results.output_dir import BEST, SCORES, SCORES_OF_BEST, VALIDATION, forget_after
from trainer.training.cache import on_device
from trainer.training.scorer import Plan, Scorer, Wanted, load_scorer, make_plan

logger = logging.getLogger(__name__)

PICTURE = "scores.png"
MEANINGS = {
    "dino": "dino: like the training pictures, in shape and detail",
    "clip_i": "clip_i: like them, in kind and colour",
    "clip_t": "clip_t: does what the prompt says",
    "drift": "drift: damage to other prompts",
}
INK, BEST_INK = "#2f6fde", "#e0672f"


def balance(scores: Mapping[str, Any]) -> float:
    """Likeness, obedience and damage in one number, weighed by convention.

    balance = (dino + clip_i) / 2 + clip_t - drift
    """
    return (scores["dino"] + scores["clip_i"]) / 2 + scores["clip_t"] - scores["drift"]


class LiveScores:
    """The scores of one concept, from validation to validation.

    `validation.jsonl` has a line a step, `validation/scores.png` the curves, `best` the result as
    it was at the best step, with its scores.
    """

    def __init__(
        self, config: Config, plan: Plan, instances: Sequence[CaptionedImage], scorer: Scorer
    ) -> None:
        """Take the concept's options, what is to be drawn, its pictures and what measures."""
        self._config = config
        self._plan = plan
        self._true = [load_image(instance.path) for instance in instances]
        self._scorer = scorer
        self._base: list[Image.Image] = []
        self._folder = config.run.output_dir

    def see_base(self, pipeline: DiffusionPipeline) -> None:
        """Draw what the base makes of other prompts, while it is still as it came."""
        self._base = self._draw(pipeline, self._plan.others, {})

    def resume(self, step: int) -> None:
        """Forget what was written of later steps; they are taken again."""
        forget_after(self._folder / SCORES, step)
        whole = _unfinished(self._folder)
        if (whole / SCORES_OF_BEST).exists() and not (self._folder / BEST).exists():
            whole.rename(self._folder / BEST)  # killed between two renames

    def measure(
        self,
        pipeline: DiffusionPipeline,
        step: int,
        device: torch.device,
        drawn: Mapping[Wanted, Image.Image],
    ) -> dict[str, float]:
        """Draw what is not `drawn` already, score, and write the line and the curves of a step."""
        with on_device(pipeline, device):
            concept = self._draw(pipeline, self._plan.asked, drawn)
            others = self._draw(pipeline, self._plan.others, drawn)
        pictures = Pictures(self._true, concept, self._plan.prompts, others, self._base)
        scores = {name: round(value, 6) for name, value in self._scorer.score(pictures).items()}
        lines = [*read_scores(self._folder), {"step": step, **scores}]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        write_atomically(self._folder / SCORES, text)
        (self._folder / VALIDATION).mkdir(exist_ok=True)
        by = self._config.scores.keep_best
        save_png(curves(lines, by), self._folder / VALIDATION / PICTURE)
        told = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
        logger.info("Scores at step %d: %s", step, told)
        return scores

    def keep_best(
        self, step: int, scores: Mapping[str, float], save: Callable[[Path], object]
    ) -> None:
        """Have the result saved if no step before was better; step 0 is the base and no result."""
        by = self._config.scores.keep_best
        best = read_best(self._folder)
        if by is None or step == 0 or (best and value_by(by, scores) <= value_by(by, best)):
            return
        folder = _unfinished(self._folder)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        save(folder)
        told = {"step": step, "by": by, "value": round(value_by(by, scores), 6), **scores}
        write_atomically(folder / SCORES_OF_BEST, json.dumps(told, indent=2) + "\n")
        shutil.rmtree(self._folder / BEST, ignore_errors=True)
        folder.rename(self._folder / BEST)
        logger.info("The best so far by %s: kept in %s", by, self._folder / BEST)

    def _draw(
        self,
        pipeline: DiffusionPipeline,
        wanted: Sequence[Wanted],
        drawn: Mapping[Wanted, Image.Image],
    ) -> list[Image.Image]:
        run = self._config.run
        lacking = [pair for pair in wanted if pair not in drawn]
        images = sample_images(
            pipeline,
            [prompt for prompt, _ in lacking],
            [seed for _, seed in lacking],
            num_inference_steps=run.num_inference_steps,
            guidance_scale=run.guidance_scale,
            resolution=self._config.instance.resolution,
            progress=False,
        )
        found = {**drawn, **dict(zip(lacking, images, strict=True))}
        return [found[pair] for pair in wanted]


def live_scores(
    config: Config,
    configs: Mapping[str, Config],
    instances: Mapping[str, Sequence[CaptionedImage]],
    scorer: Scorer | None,
    device: torch.device,
) -> dict[str, LiveScores]:
    """The scores of every concept, by a scorer or else by `eval`; none where none are asked for.

    Raises:
        LoLDUError: when the prompts of a concept cannot be scored, or the scorer is missing.
    """
    if not config.scores.validation_scores:
        return {}
    plans = {name: make_plan(own) for name, own in configs.items()}
    scorer = scorer or load_scorer(config.scores, device)
    return {
        name: LiveScores(own, plans[name], instances[name], scorer) for name, own in configs.items()
    }


def value_by(by: BestBy, scores: Mapping[str, Any]) -> float:
    """What the best step has most of."""
    return balance(scores) if by == "balance" else scores[by]


def read_scores(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's `validation.jsonl`, oldest first."""
    path = folder / SCORES
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def scores_at(folder: Path, step: int) -> dict[str, float] | None:
    """What was measured at a step, if it was."""
    for line in read_scores(folder):
        if line["step"] == step:
            return {name: value for name, value in line.items() if name != "step"}
    return None


def read_best(folder: Path) -> dict[str, Any] | None:
    """Step and scores of what is in `best`, if anything is."""
    path = folder / BEST / SCORES_OF_BEST
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def curves(lines: Sequence[Mapping[str, Any]], by: BestBy | None) -> Image.Image:
    """The scores against steps; where one step counts as the best, it is marked."""
    steps = [line["step"] for line in lines]
    later = [line for line in lines if line["step"] > 0]
    best = max(later, key=lambda line: value_by(by, line)) if by and later else None
    panels = []
    for name in [key for key in lines[-1] if key != "step"]:
        line = Line("", INK, steps, [line[name] for line in lines])
        mark = (best["step"], best[name]) if best else None
        panels.append(Panel(MEANINGS.get(name, name), [line], mark))
    told = f"Scores at {len(lines)} steps"
    if best:
        told += f"; marked: step {best['step']}, the best by {by}"
    return draw_chart(told, panels, columns=2)


def _unfinished(folder: Path) -> Path:
    return folder / f".{BEST}.tmp"
