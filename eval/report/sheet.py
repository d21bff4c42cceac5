"""What a report shows and says, in a picture and in a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from eval.report.picture import MAX_COLUMNS, ScoreBar, Section, draw_report
from eval.report.result import METRICS
from loldu.pictures.open import load_image

if TYPE_CHECKING:
    from eval.commands.adapter import Plan, Report
    from eval.protocols.drawing import Wanted


def draw_sheet(report: Report, base: Plan, adapted: Plan, taught: Sequence[Path]) -> Image.Image:
    """Draw the report's picture.

    Args:
        report: What was measured.
        base: The pictures of the base.
        adapted: Those with the concept, of the same prompts and seeds.
        taught: Pictures it was trained on.
    """
    sections = [
        Section("The concept", "The pictures it was taught with.", [("", _open(taught))]),
        Section(
            "Asked for the concept",
            "Each column has one prompt and one starting noise, before and after the concept file "
            "is loaded.",
            [("before", _drawn(base.concept)), ("after", _drawn(adapted.concept))],
            [one.prompt for one in adapted.concept],
        ),
        Section(
            "Asked for other things",
            "What was not taught should stay as it was.",
            [("before", _drawn(base.others)), ("after", _drawn(adapted.others))],
            [one.prompt for one in adapted.others],
        ),
    ]
    facts = report.facts
    versions = ", ".join(f"{name} {number}" for name, number in facts["drawn_with"].items())
    footer = (
        f"Base {facts['base_model']}; {len(base.concept)} pictures of the concept and "
        f"{len(base.others)} of other things from each model, in "
        f"{facts['num_inference_steps']} steps at guidance {facts['guidance_scale']:g}; "
        f"{versions}."
    )
    title = f"“{report.name}”, before and after"
    return draw_report(title, _summary(report), sections, _bars(report), footer)


def gain_rows(report: Report) -> list[list[str]]:
    """A heading, and a row for each score: before, after, what changed, and what is possible."""
    rows = [["", "before", "after", "gain", "real pictures"]]
    for metric, gain in report.gains.items():
        real = report.real.get(metric)
        rows.append(
            [
                METRICS[metric],
                f"{report.base.estimates[metric].mean:.3f}",
                f"{report.adapted.estimates[metric].mean:.3f}",
                f"{gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
                "" if real is None else f"{real:.3f}",
            ]
        )
    others = report.others
    told = [f"{others[model]:.3f}" for model in ("base", "adapted")]
    change = f"{others['adapted'] - others['base']:+.3f}"
    rows.append(["CLIP-T of other prompts", *told, change, ""])
    rows.append(["drift of other prompts", "0", f"{others['drift']:.3f}", "", ""])
    return rows


def _summary(report: Report) -> str:
    known = report.facts
    facts = [f"a concept file of {known['concept_bytes'] / 1000:.0f} kB"]
    if known["trainable_parameters"] is not None:
        facts.insert(0, f"{known['trainable_parameters']:,} trained numbers")
    if known["train_seconds"] is not None:
        facts.append(f"{known['train_steps']} steps in {known['train_seconds']:.0f} seconds")
    return " · ".join(facts)


def _bars(report: Report) -> list[ScoreBar]:
    def bar(name: str, meaning: str, metric: str) -> ScoreBar:
        base, adapted = (which.estimates[metric].mean for which in (report.base, report.adapted))
        return ScoreBar(name, meaning, base, adapted, report.real.get(metric))

    return [
        bar("Looks like the concept: DINO", "Against true pictures, by shape and detail", "dino"),
        bar(
            "Looks like the concept: CLIP-I", "Against true pictures, by kind and colour", "clip_i"
        ),
        bar("Follows the prompt: CLIP-T", "Against the prompt, without the rare token", "clip_t"),
        ScoreBar(
            "Other things still follow: CLIP-T",
            "Pictures of other things against their prompts",
            report.others["base"],
            report.others["adapted"],
        ),
    ]


def _drawn(wanted: Sequence[Wanted]) -> list[Image.Image]:
    return _open([one.path for one in wanted])


def _open(paths: Sequence[Path]) -> list[Image.Image]:
    return [load_image(path) for path in paths[:MAX_COLUMNS]]
