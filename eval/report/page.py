"""Results as an HTML page: one file that contains its pictures and works offline."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from PIL import Image

from eval.metrics import METRICS
from eval.report.before_after import BeforeAfter, PictureSet
from eval.report.tables import before_after_rows, result_rows
from eval.report.verdict import Answer
from eval.result import Result
from loldu.pictures.open import load_image

TEMPLATES = Path(__file__).parent.parent / "templates"
THUMBNAIL_PX = 192
MOST_SHOWN = 60
"""Pictures of each section; a page of thousands would be too large."""
IN_SIGHT = 6
"""Pictures of each section that are not behind a fold."""


@dataclass(frozen=True)
class Shot:
    """Pictures side by side, each with a label, with their prompt and scores."""

    pictures: Sequence[tuple[str, Path]]
    prompt: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A heading, a note and the pictures below."""

    heading: str
    note: str
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Table:
    """Rows of a table, the heading first."""

    rows: Sequence[Sequence[str]]
    note: str = ""


class _Album:
    """Thumbnails by path; the page contains each once, however often it is shown."""

    def __init__(self) -> None:
        self.thumbnails: dict[Path, str] = {}
        self._numbers: dict[Path, int] = {}

    def name(self, path: Path) -> str:
        """Return the CSS class of the thumbnail."""
        if path not in self.thumbnails:
            self._numbers[path] = len(self.thumbnails)
            self.thumbnails[path] = _thumbnail(path)
        return f"p{self._numbers[path]}"


def render(
    title: str,
    *,
    tables: Sequence[Table],
    answers: Sequence[Answer] = (),
    lead: str = "",
    sections: Sequence[Section] = (),
    plot: str = "",
    facts: Mapping[str, object] | None = None,
) -> str:
    """Return the HTML of a page: the verdict, then pictures, then numbers.

    Args:
        title: Title and heading.
        tables: Tables; behind a fold below the pictures if there is a verdict, else at the top.
        answers: The verdict.
        lead: Sentence below the heading, or "".
        sections: Sections of pictures.
        plot: SVG of a plot, or "".
        facts: Names and values for the section "How it was measured".
    """
    album = _Album()
    shown = [
        {
            "heading": section.heading,
            "note": section.note,
            "shots": [
                {
                    "pictures": [(label, album.name(path)) for label, path in shot.pictures],
                    "prompt": shot.prompt,
                    "scores": [
                        (METRICS[m].title, f"{value:.3f}") for m, value in shot.scores.items()
                    ],
                }
                for shot in section.shots
            ],
        }
        for section in sections
    ]
    return _template("page.html").render(
        title=title,
        lead=lead,
        answers=answers,
        tables=tables,
        in_sight=IN_SIGHT,
        plot=plot,
        sections=shown,
        images=enumerate(album.thumbnails.values()),
        facts=facts or {},
    )


def verdict_html(answers: Sequence[Answer]) -> str:
    """Return answers as HTML, each with its numbers and its rule behind a fold."""
    return _template("verdict.html").render(answers=answers)


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template(name)


def result_page(title: str, *results: Result) -> str:
    """Return the page of results: each picture beside the most similar real one, by subject."""
    sections = [
        _section(
            subject.name,
            f"{len(subject.pictures)} pictures, {subject.real} real ones.",
            [
                Shot(
                    [("generated", one.path), ("nearest real one", one.nearest)],
                    one.prompt,
                    one.scores,
                )
                for one in subject.pictures
            ],
        )
        for result in results
        for subject in result.subjects
    ]
    return render(
        title,
        tables=[Table(result_rows(result), INTERVALS) for result in results],
        answers=[answer for result in results for answer in result.verdict],
        sections=sections,
        facts={name: fact for result in results for name, fact in _facts(result).items()},
    )


def adapter_page(report: BeforeAfter, base: PictureSet, adapted: PictureSet) -> str:
    """Return the page of a report: pictures of the same prompts and seeds before and after."""
    (before,), (after,) = report.base.subjects, report.adapted.subjects
    olds = {old.path.name: old.path for old in before.pictures}  # one of both may lack some
    asked = [
        Shot(
            [("before", olds[name]), ("after", new.path), ("nearest real one", new.nearest)],
            new.prompt,
            new.scores,
        )
        for new in after.pictures
        if (name := new.path.name) in olds
    ]
    others = [
        Shot([("before", old.path), ("after", new.path)], new.prompt)
        for old, new in zip(base.others, adapted.others, strict=True)
    ]
    return render(
        f"“{report.name}”, before and after",
        tables=[Table(before_after_rows(report), INTERVALS)],
        answers=report.verdict,
        lead=f"{len(after.pictures)} pictures of it and {len(others)} of other things, each drawn "
        "twice from the same prompt and noise: before and after the concept file is loaded.",
        sections=[
            _section("Pictures of it", "On the right is the real picture most like it.", asked),
            _section(
                "Pictures of other things",
                "They do not ask for it, and should look the same before and after.",
                others,
            ),
        ],
        facts=_facts(report.adapted)
        | {k: _text(v) for k, v in report.facts.items() if v is not None},
    )


INTERVALS = (
    "Mean, and the interval that contains it in 95 of 100 resamplings of subjects and pictures."
)


def table_page(
    title: str, rows: Sequence[Sequence[str]], encoders: Mapping[str, Mapping[str, Any]]
) -> str:
    """Return a page with one table and the encoders that were used."""
    facts = {name: _describe(encoder) for name, encoder in encoders.items()}
    return render(title, tables=[Table(rows, INTERVALS)], facts=facts)


def compare_page(tables: Sequence[Sequence[Sequence[str]]], plot: str) -> str:
    """Return the page of a comparison: scores, differences and the plot."""
    notes = (
        INTERVALS,
        "Mean difference of paired pictures; * marks differences whose interval excludes 0.",
    )
    shown = [Table(rows, note) for rows, note in zip(tables, notes, strict=True)]
    return render("Results compared", tables=shown, plot=plot)


def _section(heading: str, note: str, shots: Sequence[Shot]) -> Section:
    """Return a section of at most `MOST_SHOWN` shots; the note says if there are more."""
    if len(shots) > MOST_SHOWN:
        note += f" The first {MOST_SHOWN} of {len(shots)} are shown."
    return Section(heading, note, shots[:MOST_SHOWN])


def _facts(result: Result) -> dict[str, object]:
    return {
        **{METRICS[name].title: METRICS[name].explanation for name in result.metrics},
        **{name: _describe(encoder) for name, encoder in result.encoders.items()},
        **vars(result.protocol),
        "removed from prompts": result.token or "nothing",
        "left out": ", ".join(f"{k} ({why})" for k, why in result.skipped.items()) or "no picture",
    }


def _text(value: object) -> object:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {part}" for name, part in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _describe(encoder: Mapping[str, Any]) -> str:
    preprocess = encoder["preprocess"]
    kind = {1: "Lanczos", 2: "bilinear"}.get(preprocess.get("resample"), "bicubic")
    crop = f", center crop {preprocess['crop_px']}" if preprocess["crop_px"] else ""
    return (
        f"{encoder['name']} ({encoder['library']}, weights {encoder['weights']}; {kind} "
        f"resize {preprocess['resize_px']}{crop})"
    )


def _thumbnail(path: Path) -> str:
    image = load_image(path)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()
