"""`python -m eval adapter`: the same seeds with and without a concept, scored and shown."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from eval.commands.compare import compare_results
from eval.config import AdapterConfig
from eval.metrics.bootstrap import Estimate
from eval.metrics.functional import drift, image_similarity, text_similarities
from eval.protocols.drawing import (
    DTYPES,
    LIBRARIES,
    Wanted,
    draw,
    file_digest,
    still_missing,
    wanted_pictures,
)
from eval.protocols.origin import Origin, read_origin
from eval.protocols.prompts import fill
from eval.protocols.score import Picture, Scorer, Subject, pick_device, score_subjects
from eval.report.output import refuse_to_overwrite
from eval.report.page import adapter_page
from eval.report.result import FORMAT, Result, markdown_table
from eval.report.sheet import draw_sheet, gain_rows
from loldu import load_concept
from loldu.base.open import load_pipeline, weights_digest
from loldu.errors import LoLDUError
from loldu.files import save_png, write_atomically
from loldu.pictures.folder import list_images

logger = logging.getLogger(__name__)

REPORT_JSON, REPORT_PNG, REPORT_HTML = "report.json", "report.png", "report.html"
PICTURES, HELD_OUT = "pictures", "held_out"


@dataclass(frozen=True)
class Plan:
    """Every picture of one model: of the concept, and of other things, seed by seed."""

    concept: list[Wanted]
    others: list[Wanted]

    @property
    def wanted(self) -> list[Wanted]:
        """All of them."""
        return self.concept + self.others


@dataclass(frozen=True)
class Truth:
    """The pictures it was taught with, and those it is scored against."""

    taught: list[Path]
    held_out: list[Path] | None

    @property
    def real(self) -> list[Path]:
        """Held-out pictures where there are any; else the others, which flatters a copyist."""
        return self.held_out or self.taught


@dataclass(frozen=True)
class Report:
    """A concept before and after training.

    Attributes:
        name: What it is called in prompts.
        base: Scores of what the base draws.
        adapted: Scores with the concept loaded, of the same prompts and seeds.
        others: `base` and `adapted`: CLIP-T of other prompts; `drift`: how far those moved.
        real: DINO and CLIP-I of the taught pictures against the true ones.
        facts: How it was trained and drawn.
    """

    name: str
    base: Result
    adapted: Result
    others: Mapping[str, float]
    real: Mapping[str, float]
    facts: Mapping[str, Any]

    @cached_property
    def gains(self) -> dict[str, Estimate]:
        """Adapted less base, picture by picture that both have."""
        samples = self.adapted.protocol.bootstrap_samples
        both = {"before": self.base, "after": self.adapted}
        return compare_results(both, samples=samples).differences["after"]

    def as_json(self) -> dict[str, Any]:
        """The whole of it for a file."""
        return {
            "format": FORMAT,
            "name": self.name,
            "gains": {metric: asdict(value) for metric, value in self.gains.items()},
            "others": dict(self.others),
            "real": dict(self.real),
            **self.facts,
            "adapted": self.adapted.as_json(),
            "base": self.base.as_json(),
        }


def evaluate_adapter(config: AdapterConfig) -> None:
    """Draw what is missing, score, and write `report.json`, `report.html` and `report.png`.

    Raises:
        LoLDUError: If a flag is missing, results are there already, or weights are not.
    """
    paths = [config.output_dir / name for name in (REPORT_JSON, REPORT_HTML, REPORT_PNG)]
    refuse_to_overwrite(paths, overwrite=config.overwrite)
    origin = read_origin(config)
    base, adapted = make_plans(config, origin)
    truth = true_pictures(origin.instance_data_dir)
    scorer = Scorer(config.models)

    started = time.perf_counter()
    draw_missing(config, origin, base, adapted)
    drawn = time.perf_counter()
    name = f"{origin.token} {origin.class_name}"
    before, after = (
        score_subjects(
            scorer,
            [Subject(name, [Picture(w.path, w.prompt) for w in plan.concept], truth.real)],
            config.protocol,
            origin.token,
        )
        for plan in (base, adapted)
    )
    others = score_others(scorer, base, adapted)
    facts = {
        **origin.training,
        "sampling_seconds": round(drawn - started, 3),
        "scoring_seconds": round(time.perf_counter() - drawn, 3),
        "base_model": origin.base.pretrained_model_name_or_path,
        **asdict(config.drawing),
        "drawn_with": {name: version(name) for name in LIBRARIES},
    }
    report = Report(name, before, after, others, score_real(scorer, truth), facts)
    sheet = draw_sheet(report, base, adapted, truth.taught)
    write_atomically(paths[0], json.dumps(report.as_json(), indent=2) + "\n")
    write_atomically(paths[1], adapter_page(report, base.others, adapted.others))
    save_png(sheet, paths[2])
    print(markdown_table(gain_rows(report)))  # noqa: T201
    logger.info("Wrote %s, %s and %s", *paths)


def make_plans(config: AdapterConfig, origin: Origin) -> tuple[Plan, Plan]:
    """What is drawn with the base, and with the concept.

    Raises:
        LoLDUError: If there is nothing to ask for.
    """
    for flag, values in (
        ("--prompts", config.prompts),
        ("--other_prompts", config.other_prompts),
    ):
        if not values:
            raise LoLDUError(f"{flag} is empty: give some, or a --preset such as dreambooth.")

    def plan(model: str) -> Plan:
        folder = config.output_dir / PICTURES / model
        asked, others = (
            wanted_pictures(
                folder / kind,
                fill(prompts, origin.token, origin.class_name),
                config.drawing.seeds,
            )
            for kind, prompts in (("concept", config.prompts), ("others", config.other_prompts))
        )
        return Plan(asked, others)

    return plan("base"), plan("adapted")


def true_pictures(folder: Path) -> Truth:
    """The training pictures, and the held-out ones where the folder has any."""
    held_out = folder / HELD_OUT
    return Truth(list_images(folder), list_images(held_out) if held_out.is_dir() else None)


def draw_missing(config: AdapterConfig, origin: Origin, base: Plan, adapted: Plan) -> None:
    """Draw everything with the base, then with the concept loaded, from the same noise.

    Raises:
        LoLDUError: If other pictures are in the way.
    """
    device = torch.device(pick_device(config.models.device))
    dtype = DTYPES[config.drawing.mixed_precision]
    pipeline = load_pipeline(origin.base, torch_dtype=dtype, device=device)
    settings = config.drawing
    plain = {"base": weights_digest(pipeline), "concept": None}
    taught = plain | {"concept": file_digest(config.concept)}
    missing = [
        still_missing(plan.wanted, settings, made, redraw=config.overwrite, flag="--overwrite")
        for plan, made in ((base, plain), (adapted, taught))
    ]
    draw(pipeline, missing[0], settings, plain, label="drawing with the base")
    if missing[1]:
        load_concept(pipeline, config.concept)
        draw(pipeline, missing[1], settings, taught, label="drawing with the concept")


def score_others(scorer: Scorer, base: Plan, adapted: Plan) -> dict[str, float]:
    """Whether other things are still drawn as they were."""
    seen = scorer.see([one.path for plan in (base, adapted) for one in plan.others])
    before, after = (
        seen.stack("clip", [one.path for one in plan.others]) for plan in (base, adapted)
    )
    texts = scorer.extractors.clip.encode_texts([one.prompt for one in base.others])
    scores = {
        "base": text_similarities(before, texts).mean().item(),
        "adapted": text_similarities(after, texts).mean().item(),
        "drift": drift(after, before),
    }
    return {name: round(value, 6) for name, value in scores.items()}


def score_real(scorer: Scorer, truth: Truth) -> dict[str, float]:
    """The taught pictures against the true ones; nothing, where one picture is all there is."""
    both: Sequence[Path] = truth.taught + (truth.held_out or [])
    alone = truth.held_out is None
    if alone and len(truth.taught) < 2:
        return {}
    seen = scorer.see(both)
    return {
        metric: round(
            image_similarity(
                seen.stack(name, truth.taught), seen.stack(name, truth.real), exclude_self=alone
            ),
            6,
        )
        for metric, name in (("dino", "dino"), ("clip_i", "clip"))
    }
