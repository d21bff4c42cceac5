"""Results as a page: one file that holds its pictures, and needs neither network nor script."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
from PIL import Image

from eval.report.result import METRICS, Result, score_rows
from eval.report.sheet import gain_rows
from loldu.pictures.open import load_image

if TYPE_CHECKING:
    from eval.commands.adapter import Report
    from eval.protocols.drawing import Wanted

TEMPLATES = Path(__file__).parent.parent / "templates"
THUMBNAIL_PX = 192
MOST_SHOWN = 60
"""Of each subject: a page of thousands of pictures would be as large as the pictures."""


@dataclass(frozen=True)
class Shot:
    """Pictures that belong together, with what was asked and what was measured."""

    pictures: Sequence[tuple[str, Path]]
    prompt: str | None = None
    scores: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """A heading with shots."""

    heading: str
    note: str
    shots: Sequence[Shot]


@dataclass(frozen=True)
class Table:
    """Rows of which the first is the heading."""

    rows: Sequence[Sequence[str]]
    note: str = ""


class _Album:
    """Thumbnails by path: each is kept in the page once, however often it is shown."""

    def __init__(self) -> None:
        self.kept: dict[Path, str] = {}
        self._numbers: dict[Path, int] = {}

    def name(self, path: Path) -> str:
        """Where the template finds the picture."""
        if path not in self.kept:
            self._numbers[path] = len(self.kept)
            self.kept[path] = _thumbnail(path)
        return f"p{self._numbers[path]}"


def render(
    title: str,
    *,
    tables: Sequence[Table],
    sections: Sequence[Section] = (),
    plot: str = "",
    facts: Mapping[str, object] | None = None,
) -> str:
    """Return the page."""
    album = _Album()
    shown = [
        {
            "heading": section.heading,
            "note": section.note,
            "shots": [
                {
                    "pictures": [(label, album.name(path)) for label, path in shot.pictures],
                    "prompt": shot.prompt,
                    "scores": [(METRICS[m], f"{value:.3f}") for m, value in shot.scores.items()],
                }
                for shot in section.shots
            ],
        }
        for section in sections
    ]
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html").render(
        title=title,
        tables=tables,
        plot=plot,
        sections=shown,
        images=enumerate(album.kept.values()),
        facts=facts or {},
    )


def result_page(title: str, result: Result) -> str:
    """Every picture beside the real one most like it, subject by subject."""
    sections = [
        _section(
            subject.name,
            f"{len(subject.pictures)} pictures, {subject.real} real ones.",
            [
                Shot(
                    [("drawn", one.path), ("nearest real one", one.nearest)], one.prompt, one.scores
                )
                for one in subject.pictures
            ],
        )
        for subject in result.subjects
    ]
    rows = Table(score_rows(result), INTERVALS)
    return render(title, tables=[rows], sections=sections, facts=_facts(result))


def adapter_page(report: Report, base: Sequence[Wanted], adapted: Sequence[Wanted]) -> str:
    """Before and after: the same prompts and seeds, and the real picture most like the latter."""
    (before,), (after,) = report.base.subjects, report.adapted.subjects
    olds = {old.path.name: old.path for old in before.pictures}  # some may be left out of one
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
        for old, new in zip(base, adapted, strict=True)
    ]
    return render(
        f"“{report.name}”, before and after",
        tables=[Table(gain_rows(report), INTERVALS)],
        sections=[
            _section(
                "Asked for the concept",
                "One prompt and one starting noise each, without and with the concept file.",
                asked,
            ),
            _section(
                "Asked for other things", "What was not taught should stay as it was.", others
            ),
        ],
        facts=_facts(report.adapted)
        | {k: _told(v) for k, v in report.facts.items() if v is not None},
    )


INTERVALS = (
    "Mean, and the interval in which it lies in 95 of 100 resamplings of pictures and subjects."
)


def table_page(title: str, rows: Sequence[Sequence[str]], told: Mapping[str, Any]) -> str:
    """A table alone, with what looked at the pictures."""
    facts = {name: _describe(one) for name, one in told["extractors"].items()}
    return render(title, tables=[Table(rows, INTERVALS)], facts=facts)


def compare_page(tables: Sequence[Sequence[Sequence[str]]], plot: str) -> str:
    """Tables of results and of their differences, with the plot."""
    notes = (
        INTERVALS,
        "The difference of each pair of pictures, averaged; * where its interval leaves out 0.",
    )
    shown = [Table(rows, note) for rows, note in zip(tables, notes, strict=True)]
    return render("Results compared", tables=shown, plot=plot)


def _section(heading: str, note: str, shots: Sequence[Shot]) -> Section:
    """As many as are shown; that there are more is told."""
    if len(shots) > MOST_SHOWN:
        note += f" The first {MOST_SHOWN} of {len(shots)} are shown."
    return Section(heading, note, shots[:MOST_SHOWN])


def _facts(result: Result) -> dict[str, object]:
    return {
        **{name: _describe(told) for name, told in result.extractors.items()},
        **vars(result.protocol),
        "left out of prompts": result.token or "nothing",
        "left out": ", ".join(f"{k} ({why})" for k, why in result.skipped.items()) or "no picture",
    }


def _told(value: object) -> object:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {told}" for name, told in value.items())
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def _describe(extractor: Mapping[str, Any]) -> str:
    preprocess = extractor["preprocess"]
    crop = f", centre crop {preprocess['crop_px']}" if preprocess["crop_px"] else ""
    return (
        f"{extractor['name']} ({extractor['library']}, weights {extractor['weights']}; bicubic "
        f"resize {preprocess['resize_px']}{crop})"
    )


def _thumbnail(path: Path) -> str:
    image = load_image(path)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="WEBP", quality=82)
    return base64.b64encode(buffer.getvalue()).decode()
