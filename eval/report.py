"""`python -m eval report`: the same seeds with and without a concept, scored and drawn."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from rich.console import Console

from eval.config import ReportConfig
from eval.errors import EvalError
from eval.origin import Origin, read_origin
from eval.prompts import fill
from eval.score import Extractors, likeness, load_images, pick_device, refuse_to_overwrite
from eval.sheet import Drawn, draw_sheet, score_table
from loldu import __version__, load_concept
from trainer.base import load_pipeline
from trainer.files import save_png, write_atomically
from trainer.prompts import without_token
from trainer.sampling import sample_images

logger = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
LIBRARIES = ("torch", "diffusers", "transformers", "peft")
REPORT_JSON, REPORT_PNG, HELD_OUT = "report.json", "report.png", "held_out"


@dataclass(frozen=True)
class Plan:
    """Every picture to draw: each prompt from each seed, in the order seed by seed."""

    prompts: list[str]
    other_prompts: list[str]
    seeds: tuple[int, ...]

    def asked(self) -> tuple[list[str], list[int]]:
        """Return prompt and seed of every picture, the concept's before the others."""
        prompts = self.prompts * len(self.seeds) + self.other_prompts * len(self.seeds)
        seeds = [seed for seed in self.seeds for _ in self.prompts]
        return prompts, seeds + [seed for seed in self.seeds for _ in self.other_prompts]


def report(config: ReportConfig) -> None:
    """Sample, score, and write `report.json` and `report.png`.

    Raises:
        EvalError: If a flag is missing, results are there already, or weights are not.
    """
    paths = [config.output_dir / REPORT_JSON, config.output_dir / REPORT_PNG]
    refuse_to_overwrite(paths, overwrite=config.scoring.overwrite)
    origin = read_origin(config)
    plan = make_plan(config, origin)
    taught, truth = true_pictures(origin.instance_data_dir)
    extractors = Extractors.load(config.scoring)

    started = time.perf_counter()
    base, adapted = draw(config, origin, plan)
    drawn = time.perf_counter()
    result = {
        "scores": score_all(extractors, plan, origin.token, base, adapted, taught, truth),
        **origin.training,
        "sampling_seconds": round(drawn - started, 3),
        "scoring_seconds": round(time.perf_counter() - drawn, 3),
        "base": origin.base.pretrained_model_name_or_path,
        "clip": config.scoring.clip,
        "dino": config.scoring.dino,
        "num_inference_steps": config.num_inference_steps,
        "guidance_scale": config.guidance_scale,
        "mixed_precision": config.mixed_precision,
        **asdict(plan),
        "versions": {"loldu": __version__, **{name: version(name) for name in LIBRARIES}},
    }
    sheet = draw_sheet(result, f"{origin.token} {origin.class_name}", base, adapted, taught)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(paths[0], json.dumps(result, indent=2) + "\n")
    save_png(sheet, paths[1])
    Console(stderr=True).print(score_table(result["scores"]))
    logger.info("Wrote %s and %s", *paths)


def make_plan(config: ReportConfig, origin: Origin) -> Plan:
    """Fill the prompts in.

    Raises:
        EvalError: If there is nothing to ask for, or no seed.
    """
    for flag, values in (
        ("--prompts", config.prompts),
        ("--other_prompts", config.other_prompts),
        ("--seeds", config.seeds),
    ):
        if not values:
            raise EvalError(f"{flag} is empty: give some, or a --preset such as dreambooth.")
    return Plan(
        prompts=fill(config.prompts, origin.token, origin.class_name),
        other_prompts=fill(config.other_prompts, origin.token, origin.class_name),
        seeds=config.seeds,
    )


def true_pictures(folder: Path) -> tuple[list[Image.Image], list[Image.Image] | None]:
    """Return the training pictures, and the held-out ones where the folder has any."""
    taught = load_images(folder)
    held_out = folder / HELD_OUT
    return taught, load_images(held_out) if held_out.is_dir() else None


def draw(config: ReportConfig, origin: Origin, plan: Plan) -> tuple[Drawn, Drawn]:
    """Draw everything with the base, then with the concept loaded, from the same noise."""
    device = torch.device(pick_device(config.scoring.device))
    pipeline = load_pipeline(
        **asdict(origin.base), torch_dtype=DTYPES[config.mixed_precision], device=device
    )
    base = _draw_once(config, pipeline, plan)
    load_concept(pipeline, config.concept)
    return base, _draw_once(config, pipeline, plan)


def _draw_once(config: ReportConfig, pipeline: StableDiffusionPipeline, plan: Plan) -> Drawn:
    prompts, seeds = plan.asked()
    images = sample_images(
        pipeline,
        prompts,
        seeds,
        num_inference_steps=config.num_inference_steps,
        guidance_scale=config.guidance_scale,
        batch_size=config.batch_size,
    )
    count = len(plan.prompts) * len(plan.seeds)
    return Drawn(images[:count], images[count:])


def score_all(
    extractors: Extractors,
    plan: Plan,
    token: str,
    base: Drawn,
    adapted: Drawn,
    taught: Sequence[Image.Image],
    truth: Sequence[Image.Image] | None,
) -> dict[str, Any]:
    """Score both models against the true pictures, and those against each other.

    Held-out pictures are the truth where there are any; else the training pictures are, which
    flatters a model that copies them.
    """
    taught_features = extractors.features(taught)
    true_features = taught_features if truth is None else extractors.features(truth)
    prompts = [without_token(prompt, token) for prompt in plan.prompts] * len(plan.seeds)
    others = plan.other_prompts * len(plan.seeds)
    scores: dict[str, Any] = {"other_prompts": {}}
    for name, drawn in (("base", base), ("adapted", adapted)):
        features = extractors.features(drawn.concept)
        scores[name] = likeness(features, true_features)
        scores[name]["clip_t"] = extractors.follows(features, prompts)
        other = extractors.follows(extractors.features(drawn.others), others)
        scores["other_prompts"][name] = {"clip_t": other}
    scores["real"] = likeness(taught_features, true_features, exclude_self=truth is None)
    return scores
