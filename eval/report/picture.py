"""Draw the picture of a report: rows of pictures under headings, and scores as bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from loldu.pictures.lettering import font, wrapped

CELL_PX = 160
GAP_PX = 10
MARGIN_PX = 40
LABEL_PX = 84
MAX_COLUMNS = 8

PAPER, INK, FAINT, RULE = "#ffffff", "#1b1f27", "#667085", "#e4e7ec"
BEFORE, AFTER, REAL = "#b4bcc8", "#2f6fde", "#e0672f"


@dataclass(frozen=True)
class PictureRows:
    """Labelled rows of pictures under a heading, with a caption below each column."""

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
    width = 2 * MARGIN_PX + LABEL_PX + columns * (CELL_PX + GAP_PX) - GAP_PX
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
    left = MARGIN_PX + LABEL_PX
    for label, images in section.rows:
        middle = page.y + CELL_PX // 2
        page.draw.text((MARGIN_PX, middle), label, font=font(18), fill=INK, anchor="lm")
        for column, image in enumerate(images[:MAX_COLUMNS]):
            page.image.paste(_thumbnail(image), (left + column * (CELL_PX + GAP_PX), page.y))
        page.y += CELL_PX + GAP_PX
    lines = [wrapped(caption, 13, CELL_PX) for caption in section.captions[:MAX_COLUMNS]]
    for column, caption in enumerate(lines):
        x = left + column * (CELL_PX + GAP_PX) + CELL_PX // 2
        for row, line in enumerate(caption):
            page.draw.text((x, page.y + row * 17), line, font=font(13), fill=FAINT, anchor="ma")
    page.y += 17 * max(map(len, lines), default=0)


def _draw_bars(page: _Page, bars: Sequence[ScoreBar]) -> None:
    _draw_heading(
        page,
        "Scores",
        "Most scores are mean cosines of features: 1 means identical, 0 means unrelated. See how "
        "far a score moves, and how close it comes to the score of real pictures.",
    )
    _draw_legend(page)
    left, right = MARGIN_PX + 420, page.image.width - MARGIN_PX - 110
    lowest = min(0.0, *(min(bar.base, bar.adapted) for bar in bars))
    highest = max(1.0, *(max(bar.base, bar.adapted, bar.real or 0) for bar in bars))

    def x_of(score: float) -> int:
        return left + round((score - lowest) / (highest - lowest) * (right - left))

    zero = x_of(0.0)
    for bar in bars:
        top = page.y
        page.text(bar.name, 17)
        page.text(bar.meaning, 13, FAINT)
        labels: list[tuple[tuple[int, int], str]] = []
        for offset, score, color in ((2, bar.base, BEFORE), (22, bar.adapted, AFTER)):
            ends = sorted((zero, x_of(score)))  # a negative score grows to the left
            box = (ends[0], top + offset, ends[1], top + offset + 16)
            page.draw.rectangle(box, fill=color)
            labels.append(((ends[1] + 8, top + offset + 8), f"{score:.3f}"))
        if bar.real is not None:
            x = x_of(bar.real)
            page.draw.line((x, top - 3, x, top + 43), fill=REAL, width=3)
            place = (page.image.width - MARGIN_PX, top + 20)
            page.draw.text(place, f"{bar.real:.3f}", font=font(14), fill=REAL, anchor="rm")
        for place, text in labels:  # readable across the line of real pictures
            style = {"font": font(14), "anchor": "lm", "stroke_width": 3, "stroke_fill": PAPER}
            page.draw.text(place, text, fill=INK, **style)
        page.y = top + 58


def _draw_legend(page: _Page) -> None:
    x = MARGIN_PX + 420
    for color, text in ((BEFORE, "before"), (AFTER, "after"), (REAL, "real pictures")):
        page.draw.rectangle((x, page.y + 2, x + 14, page.y + 16), fill=color)
        page.draw.text((x + 22, page.y + 9), text, font=font(14), fill=FAINT, anchor="lm")
        x += 130
    page.y += 34


def _thumbnail(image: Image.Image) -> Image.Image:
    """Return the picture, fitted into a square cell."""
    scale = CELL_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    resized = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    cell = Image.new("RGB", (CELL_PX, CELL_PX), PAPER)
    cell.paste(resized, ((CELL_PX - size[0]) // 2, (CELL_PX - size[1]) // 2))
    return cell
