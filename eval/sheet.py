"""What a report shows and says, in a picture and in a table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image
from rich.table import Table

from eval.picture import ScoreBar, Section, draw_report


@dataclass(frozen=True)
class Drawn:
    """The pictures of one model, in the order in which the prompts repeat."""

    concept: list[Image.Image]
    others: list[Image.Image]


def draw_sheet(
    result: dict[str, Any],
    name: str,
    base: Drawn,
    adapted: Drawn,
    taught: Sequence[Image.Image],
) -> Image.Image:
    """Draw the report's picture.

    Args:
        result: The content of `report.json`.
        name: What the concept is called in prompts.
        base: Pictures of the base.
        adapted: Pictures with the concept, from the same prompts and seeds.
        taught: Pictures it was trained on.
    """
    repeats = len(result["seeds"])
    sections = [
        Section("The concept", "The pictures it was taught with.", [("", taught)]),
        Section(
            "Asked for the concept",
            "Each column has one prompt and one starting noise, before and after the concept file "
            "is loaded.",
            [("before", base.concept), ("after", adapted.concept)],
            result["prompts"] * repeats,
        ),
        Section(
            "Asked for other things",
            "What was not taught should stay as it was.",
            [("before", base.others), ("after", adapted.others)],
            result["other_prompts"] * repeats,
        ),
    ]
    versions = ", ".join(f"{library} {number}" for library, number in result["versions"].items())
    footer = (
        f"Base {result['base']}; {len(base.concept)} pictures of the concept and "
        f"{len(base.others)} of other things from each model, in "
        f"{result['num_inference_steps']} steps at guidance {result['guidance_scale']:g}; "
        f"{versions}."
    )
    title = f"“{name}”, before and after"
    return draw_report(title, _summary(result), sections, _bars(result["scores"]), footer)


def score_table(scores: dict[str, Any]) -> Table:
    """Return the scores as a table for the terminal."""
    table = Table("mean cosine")
    for heading in ("before", "after", "true pictures"):
        table.add_column(heading, justify="right")
    for bar in _bars(scores):
        real = "" if bar.real is None else f"{bar.real:.3f}"
        table.add_row(bar.name, f"{bar.base:.3f}", f"{bar.adapted:.3f}", real)
    return table


def _summary(result: dict[str, Any]) -> str:
    facts = [f"a concept file of {result['concept_bytes'] / 1000:.0f} kB"]
    if result["trainable_parameters"] is not None:
        facts.insert(0, f"{result['trainable_parameters']:,} trained numbers")
    if result["train_seconds"] is not None:
        facts.append(f"{result['train_steps']} steps in {result['train_seconds']:.0f} seconds")
    return " · ".join(facts)


def _bars(scores: dict[str, Any]) -> list[ScoreBar]:
    def bar(name: str, meaning: str, metric: str) -> ScoreBar:
        real = scores["real"].get(metric)
        return ScoreBar(name, meaning, scores["base"][metric], scores["adapted"][metric], real)

    others = scores["other_prompts"]
    return [
        bar("Looks like the concept: DINO", "Against true pictures, by shape and detail", "dino"),
        bar(
            "Looks like the concept: CLIP-I", "Against true pictures, by kind and colour", "clip_i"
        ),
        bar("Follows the prompt: CLIP-T", "Against the prompt, without the rare token", "clip_t"),
        ScoreBar(
            "Other things still follow: CLIP-T",
            "Pictures of other things against their prompts",
            others["base"]["clip_t"],
            others["adapted"]["clip_t"],
        ),
    ]
