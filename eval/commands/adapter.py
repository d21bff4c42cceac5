"""`python -m eval adapter`: compare pictures with and without a concept, from the same seeds."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path

import torch

from eval.config import AdapterConfig
from eval.metrics import METRICS, Sample
from eval.protocols.concept_run import ConceptRun, read_concept_run
from eval.protocols.drawing import DTYPES, LIBRARIES, draw, file_digest, missing_pictures
from eval.protocols.others import ADAPTED, ALWAYS_ON, BASE, score_others
from eval.protocols.prompts import PlannedPicture, fill, plan_pictures
from eval.protocols.score import FeatureReader, Picture, Subject, pick_device, score_subjects
from eval.report.before_after import (
    PICTURES,
    REPORT_HTML,
    REPORT_JSON,
    REPORT_PNG,
    BeforeAfter,
    PictureSet,
)
from eval.report.limits import check_limits
from eval.report.output import refuse_to_overwrite
from eval.report.page import adapter_page
from eval.report.picture_content import draw_before_after
from eval.report.tables import before_after_rows, markdown_table
from loldu import load_concept, unload_concept
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


def evaluate_adapter(config: AdapterConfig) -> str:
    """Generate missing pictures, score them, and write report.json, report.html and report.png.

    Returns:
        A sentence about scores that failed their limits, or "".

    Raises:
        LoLDUError: If a flag or weights are missing, or results exist already.
    """
    paths = [config.output_dir / name for name in (REPORT_JSON, REPORT_HTML, REPORT_PNG)]
    refuse_to_overwrite(paths, overwrite=config.overwrite)
    _refuse_foreign_report(*paths)
    origin = read_concept_run(config)
    base, adapted = plan_both(config, origin)
    always = plan_always_on(config, adapted)
    real = find_real_pictures(origin.instance_data_dir)
    reader = FeatureReader(config.models)
    started = time.perf_counter()
    draw_missing(config, origin, base, adapted, always)
    drawn = time.perf_counter()
    name = f"{origin.token} {origin.class_name}"
    look_alikes = list_images(config.look_alikes) if config.look_alikes else ()
    rest = real.scored_against, real.training, look_alikes, origin.class_name
    before, after = (
        score_subjects(
            reader,
            [Subject(name, [Picture(p.path, p.prompt) for p in own.concept], *rest)],
            config.protocol,
            origin.token,
        )
        for own in (base, adapted)
    )
    ways = {BASE: base.others, ADAPTED: adapted.others, ALWAYS_ON: always}
    others, changes = score_others(
        reader,
        ways,
        real.scored_against,
        origin.class_name,
        config.protocol.bootstrap_samples,
    )
    of_real = score_real(reader, real, origin.class_name)
    facts = {
        **origin.training,
        "sampling_seconds": round(drawn - started, 3),
        "scoring_seconds": round(time.perf_counter() - drawn, 3),
        "base_model": origin.base.pretrained_model_name_or_path,
        **asdict(config.drawing),
        "drawn_with": {name: version(name) for name in LIBRARIES},
    }
    checked, failed = check_limits(config.limits.fail_under, {**others, **after.means})
    report = BeforeAfter(name, before, after, others, of_real, facts, changes)
    picture = draw_before_after(report, base, adapted, real.training)
    content = json.dumps({**report.as_json(), "limits": checked}, indent=2)
    write_atomically(paths[0], content + "\n")
    write_atomically(paths[1], adapter_page(report, base, adapted))
    save_png(picture, paths[2])
    print(markdown_table(before_after_rows(report)))  # noqa: T201
    logger.info("Wrote %s, %s and %s", *paths)
    return failed


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


def plan_always_on(config: AdapterConfig, adapted: PictureSet) -> list[PlannedPicture]:
    """Return the pictures of other prompts to draw with the concept always on, for `--leak`."""
    if not config.leak or config.drawing.always_on:
        return []
    folder = config.output_dir / PICTURES / ALWAYS_ON / "others"
    return [replace(one, path=folder / one.path.name) for one in adapted.others]


def find_real_pictures(folder: Path) -> RealPictures:
    """Return the pictures of a folder, and of its folder of held-out pictures if it has one."""
    held_out = folder / HELD_OUT
    return RealPictures(list_images(folder), list_images(held_out) if held_out.is_dir() else None)


def draw_missing(
    config: AdapterConfig,
    origin: ConceptRun,
    base: PictureSet,
    adapted: PictureSet,
    always: Sequence[PlannedPicture] = (),
) -> None:
    """Generate missing pictures with the base, then with the concept loaded, from the same noise.

    Args:
        config: Options.
        origin: Run of the concept.
        base: Pictures to draw with the base.
        adapted: Pictures to draw with the concept.
        always: Pictures to draw with the concept always on.

    Raises:
        LoLDUError: If a picture exists with other settings.
    """
    device = torch.device(pick_device(config.models.device))
    dtype = DTYPES[config.drawing.mixed_precision]
    pipeline = load_pipeline(origin.base, torch_dtype=dtype, device=device)
    settings = config.drawing
    plain = {"base": weights_digest(pipeline), "concept": None}
    loaded = plain | {"concept": file_digest(config.concept)}
    everywhere = replace(settings, always_on=True)
    missing = [
        missing_pictures(own, how, made, redraw=config.overwrite, flag="--overwrite")
        for own, how, made in (
            (base.planned, settings, plain),
            (adapted.planned, settings, loaded),
            (always, everywhere, loaded),
        )
    ]
    draw(pipeline, missing[0], settings, plain, label="drawing with the base")
    if missing[1]:
        words = None if settings.always_on else origin.token
        load_concept(pipeline, config.concept, words=words, route=not settings.always_on)
        draw(pipeline, missing[1], settings, loaded, label="drawing with the concept")
        unload_concept(pipeline)
    if missing[2]:
        load_concept(pipeline, config.concept, route=False)
        draw(pipeline, missing[2], everywhere, loaded, label="drawing with the concept always on")


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
