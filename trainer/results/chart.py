"""Line charts with Pillow alone: panels of curves over steps, named where they end."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from loldu.pictures.lettering import font

Number = int | float
Point = tuple[Number, Number]

PAPER, INK, FAINT, RULE = "#ffffff", "#1b1f27", "#667085", "#e4e7ec"
MARK = "#e0672f"
_SHARPER = 3
"""Everything is drawn this much larger and scaled down: Pillow's lines have jagged edges."""
_MARGIN, _LEFT, _TOP, _BOTTOM, _HEADING = 20, 52, 34, 26, 40


@dataclass(frozen=True)
class Line:
    """One curve; `spread` is how far the band around it reaches to either side."""

    name: str
    colour: str
    x: Sequence[Number]
    y: Sequence[Number]
    spread: Sequence[Number] = ()


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of axes, perhaps with one point of them marked."""

    title: str
    lines: Sequence[Line]
    mark: Point | None = None


def draw_chart(
    title: str, panels: Sequence[Panel], *, columns: int, size_px: tuple[int, int] = (420, 230)
) -> Image.Image:
    """Draw panels in rows.

    Args:
        title: Above all panels.
        panels: Left to right, then down.
        columns: Panels in a row.
        size_px: Width and height of a panel.
    """
    rows = math.ceil(len(panels) / columns)
    page = (2 * _MARGIN + columns * size_px[0], _HEADING + _MARGIN + rows * size_px[1])
    image = Image.new("RGB", (page[0] * _SHARPER, page[1] * _SHARPER), PAPER)
    _text(ImageDraw.Draw(image), (_MARGIN, 24), title, 17, INK, "lm")
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        _Axes(image, panel, _MARGIN + column * size_px[0], _HEADING + row * size_px[1], size_px)
    return image.resize(page, Image.Resampling.LANCZOS)


class _Axes:
    """One panel on the page: where its numbers lie, and what is drawn there."""

    def __init__(
        self, image: Image.Image, panel: Panel, left: int, top: int, size_px: tuple[int, int]
    ) -> None:
        names = max(font(12).getlength(line.name) for line in panel.lines)
        numbers = font(12).getlength(" 0.000")
        right = left + size_px[0] - math.ceil(names + numbers) - 14
        self._box = (left + _LEFT, top + _TOP, right, top + size_px[1] - _BOTTOM)
        self._image, self._draw = image, ImageDraw.Draw(image)
        self._x = extent([x for line in panel.lines for x in line.x], 0)
        self._y = extent([y for line in panel.lines for y in _edges(line)], 0.06)
        _text(self._draw, (left + _LEFT, top + 14), panel.title, 14, INK, "lm")
        self._grid()
        for line in panel.lines:
            self._band(line)
        for line in panel.lines:
            self._curve(line)
        if panel.mark is not None:
            self._dot(panel.mark, 5, MARK)
        self._names(panel.lines)

    def _grid(self) -> None:
        left, _, right, bottom = self._box
        for value in ticks(*self._y, 4):
            y = self._at(self._x[0], value)[1]
            self._stroke([(left, y), (right, y)], RULE, 1)
            _text(self._draw, (left - 7, y), short(value), 12, FAINT, "rm")
        for value in ticks(*self._x, 5):
            x = self._at(value, self._y[0])[0]
            _text(self._draw, (x, bottom + 12), f"{value:g}", 12, FAINT, "mm")

    def _band(self, line: Line) -> None:
        if not line.spread:
            return
        above, below = (
            [self._at(x, y + side * s) for x, y, s in zip(line.x, line.y, line.spread, strict=True)]
            for side in (1, -1)
        )
        mask = Image.new("L", self._image.size, 0)
        ImageDraw.Draw(mask).polygon(_large([*above, *below[::-1]]), fill=34)
        self._image.paste(line.colour, (0, 0, *self._image.size), mask)

    def _curve(self, line: Line) -> None:
        points = [self._at(x, y) for x, y in zip(line.x, line.y, strict=True)]
        self._stroke(points, line.colour, 2)
        for point in zip(line.x, line.y, strict=True):
            self._dot(point, 2.5, line.colour)

    def _names(self, lines: Sequence[Line]) -> None:
        """Name and last number of every curve, moved apart where they would lie on each other."""
        ends = sorted(lines, key=lambda line: -line.y[-1])
        wanted = [self._at(line.x[-1], line.y[-1])[1] for line in ends]
        for line, y in zip(ends, _apart(wanted, 14, self._box[1], self._box[3]), strict=True):
            text = f"{line.y[-1]:.3f} {line.name}".strip()
            _text(self._draw, (self._box[2] + 9, y), text, 12, line.colour, "lm")

    def _at(self, x: Number, y: Number) -> Point:
        left, top, right, bottom = self._box
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (y - self._y[0]) / (self._y[1] - self._y[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    def _stroke(self, points: Sequence[Point], colour: str, width: int) -> None:
        self._draw.line(_large(points), fill=colour, width=width * _SHARPER, joint="curve")

    def _dot(self, point: Point, radius: Number, colour: str) -> None:
        x, y = self._at(*point)
        self._draw.ellipse(
            _large([(x - radius, y - radius), (x + radius, y + radius)]),
            fill=colour,
            outline=PAPER,
            width=_SHARPER,
        )


def _edges(line: Line) -> Iterator[Number]:
    for y, spread in zip(line.y, line.spread or [0.0] * len(line.y), strict=True):
        yield from (y - spread, y + spread)


def extent(values: Sequence[Number], margin: Number) -> Point:
    """From the least to the greatest value, with room beside them; never empty."""
    low, high = min(values), max(values)
    room = margin * (high - low) or (0.0 if high > low else 0.5 * abs(high) or 0.5)
    return low - room, high + room


def ticks(low: Number, high: Number, about: int) -> list[Number]:
    """Round numbers from `low` to `high`."""
    rough = (high - low) / about
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    return [step * n for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def short(value: Number) -> str:
    """A number as an axis shows it."""
    return f"{value:.4g}" if value else "0"


def _apart(wanted: Sequence[Number], gap: Number, low: Number, high: Number) -> list[Number]:
    """Sorted places at least `gap` from each other, as near to the wanted ones as a push allows."""
    places: list[Number] = []
    for place in wanted:
        places.append(max(place, places[-1] + gap) if places else max(place, low))
    over = places[-1] - high
    if over > 0:
        for index in reversed(range(len(places))):
            limit = high if index == len(places) - 1 else places[index + 1] - gap
            places[index] = min(places[index], limit)
    return places


def _large(points: Sequence[Point]) -> list[Point]:
    return [(x * _SHARPER, y * _SHARPER) for x, y in points]


def _text(
    draw: ImageDraw.ImageDraw,
    place: Point,
    text: str,
    size_px: int,
    colour: str,
    anchor: str,
) -> None:
    ((x, y),) = _large([place])
    draw.text((x, y), text, font=font(size_px * _SHARPER), fill=colour, anchor=anchor)
