"""Curves of a run as drawings on the page: SVG in the page's own colours, dark or light."""

import math
from collections.abc import Mapping, Sequence
from html import escape

from trainer.results.chart import Line, Number, Panel, Point, extent, short, ticks
from webui.engine.progress import Progress

SCORES = {
    "dino": ("DINO", "like your pictures, in shape and detail; higher is better"),
    "clip_i": ("CLIP-I", "like your pictures, in kind and colour; higher is better"),
    "clip_t": ("CLIP-T", "does what the prompt says; higher is better"),
    "drift": ("Drift", "damage to other prompts; lower is better"),
}
"""By the name in a run's records: title and meaning."""
_RAW, _STRONG = "var(--chart-raw)", "var(--chart-line)"
_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 340, 190, 46, 46, 10, 24
_SMOOTHING = 0.9
_MOST_POINTS = 300
"""Of a curve: as many as its drawing has room for, so that a long run stays cheap to send."""
_MOST_DOTS = 30


def draw_curves(progress: Progress, shown: int | None) -> str:
    """The losses and scores so far, as HTML; nothing before there are any.

    Args:
        progress: of the run.
        shown: the step whose pictures are shown, to be marked.
    """
    panels = []
    if len(progress.losses) > 1:
        steps, losses = zip(*progress.losses, strict=True)
        title = "Loss: thin as measured, thick smoothed; noise, for the most part"
        lines = [Line("measured", _RAW, steps, losses)]
        lines.append(Line("smoothed", _STRONG, steps, smoothed(losses)))
        panels.append(Panel(title, lines))
    for name, (title, meaning) in SCORES.items():
        points = [
            (step, scores[name])
            for step, scores in sorted(progress.scores.items())
            if math.isfinite(scores.get(name, math.nan))
        ]
        if points:
            x, y = zip(*points, strict=True)
            mark = next((point for point in points if point[0] == shown), None)
            panels.append(Panel(f"{title}: {meaning}", [Line("", _STRONG, x, y)], mark))
    if not panels:
        return ""
    return f'<div class="charts">{"".join(map(_figure, panels))}</div>'


def smoothed(values: Sequence[float]) -> list[float]:
    """The running mean in which the past fades, and the first value weighs no more than others."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        means.append(total / weight)
    return means


def score_table(scores: Mapping[int, Mapping[str, float]], shown: int | None) -> str:
    """The scores of a step beside the base's, as HTML; nothing where it was not measured."""
    if shown is None or not scores.get(shown):
        return ""
    columns = {"base": scores.get(0, {}), f"step {shown}": scores[shown]}
    head = "".join(f'<th scope="col">{name}</th>' for name in columns)
    rows = "".join(
        f'<tr><th scope="row" title="{escape(meaning)}">{title}</th>'
        + "".join(f"<td>{_told(of.get(name))}</td>" for of in columns.values())
        + "</tr>"
        for name, (title, meaning) in SCORES.items()
        if name in scores[shown]
    )
    return f'<table class="scores"><tr><td></td>{head}</tr>{rows}</table>'


def _figure(panel: Panel) -> str:
    x = extent([x for line in panel.lines for x in line.x], 0)
    y = extent([y for line in panel.lines for y in line.y], 0.06)
    right, bottom = _WIDTH - _RIGHT, _HEIGHT - _BOTTOM

    def at(point: Point) -> Point:
        across = (point[0] - x[0]) / (x[1] - x[0])
        up = (point[1] - y[0]) / (y[1] - y[0])
        return round(_LEFT + across * (right - _LEFT), 1), round(bottom - up * (bottom - _TOP), 1)

    parts = []
    for value in ticks(*y, 4):
        place = at((x[0], value))
        parts.append(f'<path class="rule" d="M{_LEFT},{place[1]}H{right}"/>')
        parts.append(_text((_LEFT - 6, place[1] + 4), short(round(value, 9)), "end"))
    for value in ticks(*x, 5):
        parts.append(_text((at((value, y[0]))[0], _HEIGHT - 6), f"{value:g}", "middle"))
    parts += [_curve([at(point) for point in _thinned(line)], line.colour) for line in panel.lines]
    if panel.mark:
        parts.append(_dot(at(panel.mark), 5))
    last = panel.lines[-1]
    end = at((last.x[-1], last.y[-1]))
    parts.append(_text((end[0] + 6, end[1] + 4), f"{last.y[-1]:.3f}", "start"))
    return (
        f"<figure><figcaption>{escape(panel.title)}</figcaption>"
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(_aria(panel))}">'
        f"{''.join(parts)}</svg></figure>"
    )


def _aria(panel: Panel) -> str:
    ends = ", ".join(f"{line.name} {line.y[-1]:.3f}".strip() for line in panel.lines)
    first, last = panel.lines[-1].x[0], panel.lines[-1].x[-1]
    return f"{panel.title}. Steps {first} to {last}; at the last: {ends}"


def _thinned(line: Line) -> list[Point]:
    """Evenly, counted from the last, which is always there."""
    points = list(zip(line.x, line.y, strict=True))
    return points[:: -max(1, math.ceil(len(points) / _MOST_POINTS))][::-1]


def _curve(points: Sequence[Point], colour: str) -> str:
    dots = "".join(_dot(point, 2.5) for point in points) if len(points) <= _MOST_DOTS else ""
    path = " ".join(f"{x},{y}" for x, y in points)
    return f'<g style="--ink: {colour}"><polyline points="{path}"/>{dots}</g>'


def _dot(point: Point, radius: Number) -> str:
    return f'<circle cx="{point[0]}" cy="{point[1]}" r="{radius}"/>'


def _text(place: Point, text: str, anchor: str) -> str:
    return f'<text x="{place[0]}" y="{place[1]:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _told(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
