"""Choose the pictures, captions and scores for the picture of a report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from eval.metrics import METRICS, headline_metrics
from eval.protocols.prompts import PlannedPicture
from eval.report.before_after import BeforeAfter, PictureSet
from eval.report.picture import MAX_COLUMNS, PictureRows, ScoreBar, draw_report
from loldu.pictures.open import load_image


def draw_before_after(
    report: BeforeAfter, base: PictureSet, adapted: PictureSet, training: Sequence[Path]
) -> Image.Image:
    """Draw the picture of a report.

    Args:
        report: Scores and facts.
        base: Pictures of the base.
        adapted: Pictures with the concept, from the same prompts and seeds.
        training: Training pictures.
    """
    sections = [
        PictureRows("The concept", "Training pictures.", [("", _open(training))]),
        PictureRows(
            "Prompts for the concept",
            "Each column has one prompt and one seed, before and after the concept file is loaded.",
            [("before", _drawn(base.concept)), ("after", _drawn(adapted.concept))],
            [one.prompt for one in adapted.concept],
        ),
        PictureRows(
            "Prompts for other things",
            "These pictures should not change.",
            [("before", _drawn(base.others)), ("after", _drawn(adapted.others))],
            [one.prompt for one in adapted.others],
        ),
    ]
    facts = report.facts
    versions = ", ".join(f"{name} {number}" for name, number in facts["drawn_with"].items())
    footer = (
        f"Base {facts['base_model']}; {len(base.concept)} pictures of the concept and "
        f"{len(base.others)} of other things by each model, in "
        f"{facts['num_inference_steps']} steps at guidance {facts['guidance_scale']:g}; "
        f"the concept acts {'everywhere' if facts['always_on'] else 'where its token is'}; "
        f"{versions}."
    )
    title = f"“{report.name}”, before and after"
    return draw_report(title, _summary(report), sections, score_bars(report), footer)


def _summary(report: BeforeAfter) -> str:
    known = report.facts
    facts = [f"a concept file of {known['concept_bytes'] / 1000:.0f} kB"]
    if known["trainable_parameters"] is not None:
        facts.insert(0, f"{known['trainable_parameters']:,} trained parameters")
    if known["train_seconds"] is not None:
        facts.append(f"{known['train_steps']} steps in {known['train_seconds']:.0f} seconds")
    return " · ".join(facts)


def score_bars(report: BeforeAfter) -> list[ScoreBar]:
    """Return a bar for each headline metric of the concept, and one for other prompts."""
    base, adapted = report.base.estimates, report.adapted.estimates
    bars = [
        ScoreBar(
            f"{metric.aspect}: {metric.title}",
            f"{metric.meaning[0].upper()}{metric.meaning[1:]}",
            base[metric.name].mean,
            adapted[metric.name].mean,
            report.real.get(metric.name),
        )
        for metric in headline_metrics()
        if metric.name in base and metric.name in adapted
    ]
    others = report.others
    title = METRICS["clip_t"].title
    meaning = "Agreement of other pictures with their prompts"
    bars.append(
        ScoreBar(f"Other prompts still work: {title}", meaning, others["base"], others["adapted"])
    )
    return bars


def _drawn(planned: Sequence[PlannedPicture]) -> list[Image.Image]:
    return _open([one.path for one in planned])


def _open(paths: Sequence[Path]) -> list[Image.Image]:
    return [load_image(path) for path in paths[:MAX_COLUMNS]]
