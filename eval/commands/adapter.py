"""`python -m eval adapter`: compare pictures with and without a concept, from the same seeds."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from eval.config import AdapterConfig
from eval.metrics import METRICS, Sample
from eval.protocols.concept_run import ConceptRun, read_concept_run
from eval.protocols.drawing import DTYPES, LIBRARIES, draw, file_digest, missing_pictures
from eval.protocols.prompts import fill, plan_pictures
from eval.protocols.score import FeatureReader, Picture, Subject, pick_device, score_subjects
from eval.report.before_after import (
    PICTURES,
    REPORT_HTML,
    REPORT_JSON,
    REPORT_PNG,
    BeforeAfter,
    PictureSet,
)
from eval.report.output import refuse_to_overwrite
from eval.report.page import adapter_page
from eval.report.picture_content import draw_before_after
from eval.report.tables import before_after_rows, markdown_table
from loldu import load_concept
from loldu.base.open import load_pipeline, weights_digest
from loldu.errors import LoLDUError
from loldu.files import save_png, write_atomically
from loldu.pictures.folder import list_images

logger = logging.getLogger(__name__)

HELD_OUT = "held_out"


@dataclass(frozen=True)
class RealPictures:
    """Training pictures of a concept, and pictures held out from training, if there are any."""

    training: list[Path]
    held_out: list[Path] | None

    @property
    def scored_against(self) -> list[Path]:
        """Held-out pictures, or else the training pictures, which favor copies of them."""
        return self.held_out or self.training


def evaluate_adapter(config: AdapterConfig) -> None:
    """Generate missing pictures, score them, and write report.json, report.html and report.png.

    Raises:
        LoLDUError: If a flag or weights are missing, or results exist already.
    """
    paths = [config.output_dir / name for name in (REPORT_JSON, REPORT_HTML, REPORT_PNG)]
    refuse_to_overwrite(paths, overwrite=config.overwrite)
    _refuse_foreign_report(*paths)
    origin = read_concept_run(config)
    base, adapted = plan_both(config, origin)
    real = find_real_pictures(origin.instance_data_dir)
    look_alikes = list_images(config.look_alikes) if config.look_alikes else []
    reader = FeatureReader(config.models)

    started = time.perf_counter()
    draw_missing(config, origin, base, adapted)
    drawn = time.perf_counter()
    name = f"{origin.token} {origin.class_name}"
    before, after = (
        score_subjects(
            reader,
            [
                Subject(
                    name,
                    [Picture(p.path, p.prompt) for p in own.concept],
                    real.scored_against,
                    real.training,
                    look_alikes,
                    origin.class_name,
                )
            ],
            config.protocol,
            origin.token,
        )
        for own in (base, adapted)
    )
    others = score_others(reader, base, adapted)
    of_real = score_real(reader, real, origin.class_name)
    facts = {
        **origin.training,
        "sampling_seconds": round(drawn - started, 3),
        "scoring_seconds": round(time.perf_counter() - drawn, 3),
        "base_model": origin.base.pretrained_model_name_or_path,
        **asdict(config.drawing),
        "drawn_with": {name: version(name) for name in LIBRARIES},
    }
    report = BeforeAfter(name, before, after, others, of_real, facts)
    picture = draw_before_after(report, base, adapted, real.training)
    write_atomically(paths[0], json.dumps(report.as_json(), indent=2) + "\n")
    write_atomically(paths[1], adapter_page(report, base, adapted))
    save_png(picture, paths[2])
    print(markdown_table(before_after_rows(report)))  # noqa: T201
    logger.info("Wrote %s, %s and %s", *paths)


def _refuse_foreign_report(report: Path, *beside: Path) -> None:
    """Check that existing files are of this command; page and picture go with the report."""
    for path in (report, *beside):
        if not path.exists():
            continue
        try:
            ours = "adapted" in json.loads(report.read_text(encoding="utf-8"))
        except (OSError, ValueError, TypeError):
            ours = False
        if not ours:
            raise LoLDUError(
                f"{path} would be replaced, but this command did not write it; move it away, or "
                "choose another --output_dir."
            )


def plan_both(config: AdapterConfig, origin: ConceptRun) -> tuple[PictureSet, PictureSet]:
    """Return the pictures to generate with the base, and those with the concept.

    Raises:
        LoLDUError: If there are no prompts.
    """
    for flag, values in (
        ("--prompts", config.prompts),
        ("--other_prompts", config.other_prompts),
    ):
        if not values:
            raise LoLDUError(f"{flag} is empty: give some, or a --preset such as dreambooth.")

    def plan(model: str) -> PictureSet:
        folder = config.output_dir / PICTURES / model
        concept, others = (
            plan_pictures(
                folder / kind,
                fill(prompts, origin.token, origin.class_name),
                config.drawing.seeds,
            )
            for kind, prompts in (("concept", config.prompts), ("others", config.other_prompts))
        )
        return PictureSet(concept, others)

    return plan("base"), plan("adapted")


def find_real_pictures(folder: Path) -> RealPictures:
    """Return the pictures of a folder, and of its folder of held-out pictures if it has one."""
    held_out = folder / HELD_OUT
    return RealPictures(list_images(folder), list_images(held_out) if held_out.is_dir() else None)


def draw_missing(
    config: AdapterConfig, origin: ConceptRun, base: PictureSet, adapted: PictureSet
) -> None:
    """Generate missing pictures with the base, then with the concept loaded, from the same noise.

    Raises:
        LoLDUError: If a picture exists with other settings.
    """
    device = torch.device(pick_device(config.models.device))
    dtype = DTYPES[config.drawing.mixed_precision]
    pipeline = load_pipeline(origin.base, torch_dtype=dtype, device=device)
    settings = config.drawing
    plain = {"base": weights_digest(pipeline), "concept": None}
    loaded = plain | {"concept": file_digest(config.concept)}
    missing = [
        missing_pictures(own.planned, settings, made, redraw=config.overwrite, flag="--overwrite")
        for own, made in ((base, plain), (adapted, loaded))
    ]
    draw(pipeline, missing[0], settings, plain, label="drawing with the base")
    if missing[1]:
        words = None if settings.always_on else origin.token
        load_concept(pipeline, config.concept, words=words, route=not settings.always_on)
        draw(pipeline, missing[1], settings, loaded, label="drawing with the concept")


def score_others(reader: FeatureReader, base: PictureSet, adapted: PictureSet) -> dict[str, float]:
    """Score pictures of other prompts: CLIP-T of both models, and the metrics against the base."""
    sets = [[one.path for one in own.others] for own in (base, adapted)]
    features = reader.read([path for paths in sets for path in paths])
    before, after = map(features.by_encoder, sets)
    texts = reader.encode_texts([one.prompt for one in base.others])
    scores = {
        model: METRICS["clip_t"].score(Sample(generated=rows, prompt_features=texts))
        for model, rows in (("base", before), ("adapted", after))
    }
    against_base = Sample(generated=after, base=before)
    scores |= {
        name: metric.score(against_base)
        for name, metric in METRICS.items()
        if metric.against == "base"
    }
    return {name: round(value, 6) + 0.0 for name, value in scores.items()}  # -0.0 + 0.0 is 0.0


def score_real(reader: FeatureReader, real: RealPictures, class_name: str) -> dict[str, float]:
    """Score training pictures against the real ones; {} if there is only one picture."""
    alone = real.held_out is None
    if alone and len(real.training) < 2:
        return {}
    pictures = real.training + (real.held_out or [])
    features = reader.read(pictures, subjects=[Subject("", (), pictures, class_name=class_name)])
    training = features.by_encoder(real.training)
    against = features.by_encoder(real.scored_against)
    samples = {
        "real": Sample(generated=training, real=against, exclude_self=alone),
        "training": Sample(generated=training, training=training, exclude_self=True),
    }
    return {
        name: round(metric.score(samples[metric.against]), 6)
        for name, metric in METRICS.items()
        if metric.against in samples and metric.of_real and metric.applies(samples[metric.against])
    }
