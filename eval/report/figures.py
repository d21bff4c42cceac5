"""Charts with matplotlib: curves over steps as a picture, and scores with intervals as SVG."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from eval.metrics.bootstrap import Estimate

INK, FAINT, RULE = "#1b1f27", "#667085", "#e4e7ec"
MARK = "#e0672f"
COLORS = (FAINT, "#2f6fde", MARK, "#12a39a", "#a05fb4", "#b86a00")
Number = int | float
DPI = 200
_PX = 1 / 100
"""Inches of one pixel of the layout; pictures have twice as many pixels, to be sharp."""
_STYLE: Any = {  # matplotlib types the keys as a literal of all its settings
    "axes.edgecolor": RULE,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": FAINT,
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "grid.color": RULE,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "loldu",  # the same plot is the same file
    "text.color": INK,
    "text.parse_math": False,  # names may hold dollar signs
    "xtick.color": FAINT,
    "xtick.major.size": 0,
    "ytick.color": FAINT,
    "ytick.major.size": 0,
}


@dataclass(frozen=True)
class Curve:
    """One curve, with an optional band of y ± spread."""

    name: str
    color: str
    x: Sequence[Number]
    y: Sequence[Number]
    spread: Sequence[Number] = ()


@dataclass(frozen=True)
class Panel:
    """Curves on one pair of axes, with an optional marked point (x, y)."""

    title: str
    curves: Sequence[Curve]
    mark: tuple[Number, Number] | None = None


def draw_curves(
    title: str, panels: Sequence[Panel], *, columns: int, size_px: tuple[int, int] = (420, 230)
) -> Image.Image:
    """Draw panels of curves in rows.

    Args:
        title: Title above all panels.
        panels: Panels from left to right, then down.
        columns: Panels in a row.
        size_px: Width and height of a panel at 100 dots an inch; the picture has `DPI`.
    """
    rows = math.ceil(len(panels) / columns)
    size = (columns * size_px[0] * _PX, (rows * size_px[1] + 40) * _PX)
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        canvas = FigureCanvasAgg(figure)
        figure.suptitle(title, fontsize=12, x=0.01, ha="left")
        grid = figure.subplots(rows, columns, squeeze=False)
        for axes, panel in zip(grid.flat, panels, strict=False):
            _draw_panel(axes, panel)
        for axes in grid.flat[len(panels) :]:
            axes.remove()
        canvas.draw()
    size_px = canvas.get_width_height(physical=True)
    return Image.frombytes("RGBA", size_px, bytes(canvas.buffer_rgba())).convert("RGB")


def _draw_panel(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title)
    for curve in panel.curves:
        axes.plot(curve.x, curve.y, color=curve.color, marker="o", markeredgecolor="white")
        if curve.spread:
            low, high = (
                [y + side * s for y, s in zip(curve.y, curve.spread, strict=True)]
                for side in (-1, 1)
            )
            axes.fill_between(curve.x, low, high, color=curve.color, alpha=0.13, linewidth=0)
    if panel.mark is not None:
        axes.plot(*panel.mark, color=MARK, marker="o", markersize=8, markeredgecolor="white")
    _label_ends(axes, panel.curves)


def _label_ends(axes: Axes, curves: Sequence[Curve]) -> None:
    """Write last value and name beside the end of each curve, moved apart where they overlap."""
    low, high = axes.get_ylim()
    height_pt = axes.get_window_extent().height * 72 / DPI
    line_pt = 11.0
    last: float | None = None
    for curve in sorted(curves, key=lambda curve: -curve.y[-1]):
        place = (high - curve.y[-1]) / (high - low) * height_pt  # points from the top
        moved = place if last is None else max(place, last + line_pt)
        axes.annotate(
            f"{curve.y[-1]:.3f} {curve.name}".strip(),
            (1, curve.y[-1]),
            xycoords=axes.get_yaxis_transform(),
            xytext=(7, place - moved),
            textcoords="offset points",
            color=curve.color,
            va="center",
            annotation_clip=False,
        )
        last = moved


def draw_intervals(metrics: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Return an SVG drawing of scores: a point and an interval for each result.

    Each metric has an axis of its own, so that small differences can be seen.

    Args:
        metrics: Scores by the title of a metric, then by the name of a result.
    """
    counts = [len(scores) for scores in metrics.values()]
    size = (760 * _PX, sum(44 + 22 * count for count in counts) * _PX)
    with mpl.rc_context(_STYLE | {"axes.grid": False}):
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(counts), 1, squeeze=False, gridspec_kw={"height_ratios": counts})
        for axes, (title, scores) in zip(grid.flat, metrics.items(), strict=True):
            _draw_metric(axes, title, scores)
        buffer = io.StringIO()
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=nothing)
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _draw_metric(axes: Axes, title: str, scores: Mapping[str, Estimate]) -> None:
    axes.set_title(title, fontweight="bold")
    axes.set_ylim(len(scores) - 0.5, -0.5)
    axes.set_yticks(range(len(scores)), [_short(name) for name in scores])
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([])
    for row, score in enumerate(scores.values()):
        color = COLORS[row % len(COLORS)]
        axes.axhline(row, color=RULE, linewidth=1, zorder=0)
        axes.plot([score.low, score.high], [row, row], color=color, linewidth=2.5)
        axes.plot(score.mean, row, color=color, marker="o", markersize=8, markeredgecolor="white")
        place = (1.01, row)
        axes.text(*place, f"{score.mean:.3f}", transform=axes.get_yaxis_transform(), va="center")


def _short(name: str, letters: int = 30) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"
