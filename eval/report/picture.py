"""Draw the picture of a report: rows of pictures under headings, and scores as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from loldu.pictures.grid import FAINT, GAP_PX, INK, PAPER, picture_grid
from loldu.pictures.lettering import font, wrapped

CELL_PX = 160
MARGIN_PX = 40
NAMES_PX = 84
MAX_COLUMNS = 8
_BARS_PX, _NUMBER_PX = 420, 90
"""Width of the names beside the bars, and of each column of numbers to their right."""

RULE = "#e4e7ec"
BEFORE, AFTER, REAL = "#b4bcc8", "#2f6fde", "#e0672f"


@dataclass(frozen=True)
class PictureRows:
    """Labelled rows of pictures under a heading, with a caption above each column."""

    heading: str
    explanation: str
    rows: Sequence[tuple[str, Sequence[Image.Image]]]
    captions: Sequence[str] = ()

    def columns(self) -> int:
        """Return the number of columns of the widest row, at most `MAX_COLUMNS`."""
        return max(min(len(images), MAX_COLUMNS) for _, images in self.rows)


@dataclass(frozen=True)
class ScoreBar:
    """One score before and after, with the score of real pictures if that is known."""

    name: str
    meaning: str
    base: float
    adapted: float
    real: float | None = None


class _Page:
    """A page that is filled from top to bottom; `y` is the next free row of pixels."""

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), PAPER)
        self.draw = ImageDraw.Draw(self.image)
        self.y = MARGIN_PX

    def text(self, text: str, size: int, color: str = INK, x: int = MARGIN_PX) -> None:
        """Write text, wrapped to the page, and move below it."""
        face = font(size)
        for line in wrapped(text, size, self.image.width - MARGIN_PX - x):
            self.draw.text((x, self.y), line, font=face, fill=color)
            self.y += round(size * 1.4)


def draw_report(
    title: str,
    subtitle: str,
    sections: Sequence[PictureRows],
    bars: Sequence[ScoreBar],
    footer: str,
) -> Image.Image:
    """Draw a report: title, sections of pictures, scores as bars, and a footer."""
    columns = max(6, *(section.columns() for section in sections))
    width = 2 * MARGIN_PX + NAMES_PX + columns * (CELL_PX + GAP_PX) - GAP_PX
    page = _Page(width, 6000)
    page.text(title, 34)
    page.text(subtitle, 17, FAINT)
    for section in sections:
        _draw_section(page, section)
    _draw_bars(page, bars)
    page.y += 14
    page.text(footer, 13, FAINT)
    return page.image.crop((0, 0, width, page.y + MARGIN_PX - 8))


def _draw_heading(page: _Page, heading: str, explanation: str) -> None:
    page.y += 16
    page.draw.line((MARGIN_PX, page.y, page.image.width - MARGIN_PX, page.y), fill=RULE, width=1)
    page.y += 14
    page.text(heading, 21)
    page.text(explanation, 15, FAINT)
    page.y += 8


def _draw_section(page: _Page, section: PictureRows) -> None:
    _draw_heading(page, section.heading, section.explanation)
    rows = [(name, images[:MAX_COLUMNS]) for name, images in section.rows]
    captions = section.captions[:MAX_COLUMNS]
    grid = picture_grid(rows, captions, cell_px=CELL_PX, names_px=NAMES_PX)
    page.image.paste(grid, (MARGIN_PX, page.y))
    page.y += grid.height + GAP_PX


def _draw_bars(page: _Page, bars: Sequence[ScoreBar]) -> None:
    _draw_heading(
        page,
        "Scores",
        "Most scores are mean cosines of features: 1 means identical, 0 means unrelated. See how "
        "far a score moves, and how close it comes to the score of real pictures.",
    )
    left, right = MARGIN_PX + _BARS_PX, page.image.width - MARGIN_PX - 3 * _NUMBER_PX
    lowest = min(0.0, *(min(bar.base, bar.adapted) for bar in bars))
    highest = max(1.0, *(max(bar.base, bar.adapted, bar.real or 0) for bar in bars))

    def x_of(score: float) -> int:
        return left + round((score - lowest) / (highest - lowest) * (right - left))

    def number(column: int, y: int, text: str, color: str, size: int) -> None:
        x = right + (column + 1) * _NUMBER_PX
        page.draw.text((x, y), text, font=font(size), fill=color, anchor="rm")

    page.y += 4
    heads = (("before", BEFORE), ("after", AFTER), ("real", REAL))
    for column, (text, color) in enumerate(heads):
        number(column, page.y, text, FAINT, 14)
        x = right + (column + 1) * _NUMBER_PX - round(font(14).getlength(text)) - 8
        page.draw.rectangle((x - 12, page.y - 6, x, page.y + 6), fill=color)
    page.y += 18
    zero = x_of(0.0)
    for bar in bars:
        top = page.y
        page.text(bar.name, 17)
        page.text(bar.meaning, 13, FAINT)
        for offset, score, color in ((2, bar.base, BEFORE), (22, bar.adapted, AFTER)):
            ends = sorted((zero, x_of(score)))  # a negative score grows to the left
            page.draw.rectangle((ends[0], top + offset, ends[1], top + offset + 16), fill=color)
        if bar.real is not None:
            x = x_of(bar.real)
            page.draw.line((x, top - 3, x, top + 43), fill=REAL, width=3)
        for column, score in enumerate((bar.base, bar.adapted, bar.real)):
            number(column, top + 20, "" if score is None else f"{score:.3f}", INK, 17)
        page.y = top + 58
