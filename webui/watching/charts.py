"""Loss and score curves of a run, and the scores of one step."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from eval.metrics import headline_metrics
from webui.engine.progress import Progress
from webui.page import score_table

LOSS, MEASURED, SMOOTHED = "Loss", "measured", "smoothed"
_COLOURS = {MEASURED: "#94a3b8", SMOOTHED: "#0d9488"}
_SMOOTHING = 0.9
_MAX_POINTS = 300
"""Points per curve: as many as a chart has pixels for, so that long runs stay cheap to send."""

Point = tuple[float | int, float | int]


@dataclass(frozen=True)
class Chart:
    """Curves that share their axes; points are steps and values."""

    title: str
    curves: tuple[tuple[str, tuple[Point, ...]], ...]

    def update(self) -> dict[str, Any]:
        """Return the update of a plot of `plots`; a chart without points is hidden."""
        import pandas as pd  # takes half a second

        rows = [(x, y, name) for name, points in self.curves for x, y in points]
        data = pd.DataFrame(rows, columns=["Step", self.title, "Curve"])
        return gr.update(value=data if rows else None, visible=bool(rows))


def plots() -> dict[str, gr.LinePlot]:
    """Lay out a plot for the loss and one for every score; each is hidden until it has points."""
    meanings = {LOSS: "mostly noise; follow the smoothed curve"}
    meanings |= {metric.heading: metric.explanation for metric in headline_metrics()}
    return {
        _part(title): gr.LinePlot(
            x="Step",
            y=title,
            y_title=" ",
            color="Curve" if title == LOSS else None,
            color_title=" ",
            color_map=_COLOURS if title == LOSS else None,
            label=title,
            show_label=True,
            caption=meaning.capitalize(),
            height=220,
            min_width=280,
            buttons=[],
            visible=False,
        )
        for title, meaning in meanings.items()
    }


def charts(progress: Progress) -> dict[str, Chart]:
    """Return the chart of every plot of `plots`, by the plot's name; it may have no points."""
    steps = [step for step, _ in progress.losses]
    means = zip(steps, smoothed([loss for _, loss in progress.losses]), strict=True)
    losses = ((MEASURED, _thinned(progress.losses)), (SMOOTHED, _thinned(means)))
    shown = {_part(LOSS): Chart(LOSS, losses if len(steps) > 1 else ())}
    for metric in headline_metrics():
        points = (
            (step, scores[metric.name])
            for step, scores in sorted(progress.scores.items())
            if math.isfinite(scores.get(metric.name, math.nan))
        )
        curve = (metric.heading, _thinned(points))
        shown[_part(metric.heading)] = Chart(metric.heading, (curve,))
    return shown


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the bias-corrected exponential moving average at every value."""
    means, total, weight = [], 0.0, 0.0
    for value in values:
        total = _SMOOTHING * total + (1 - _SMOOTHING) * value
        weight = _SMOOTHING * weight + (1 - _SMOOTHING)
        means.append(total / weight)
    return means


def table_of_step(scores: Mapping[int, Mapping[str, float]], step: int | None) -> str:
    """Return the scores of a step beside the base's as HTML, or "" if it was not scored."""
    if step is None or not scores.get(step):
        return ""
    columns = scores.get(0, {}), scores[step]
    rows = [
        (m.heading, *(f"{of[m.name]:.3f}" if m.name in of else "" for of in columns))
        for m in headline_metrics()
        if m.name in scores[step]
    ]
    return score_table(("", "base", f"step {step}"), rows)


def _part(title: str) -> str:
    return f"{title} chart"


def _thinned(points: Iterable[Point]) -> tuple[Point, ...]:
    """Return points at even distances, counted from the last one, which always stays."""
    points = tuple(points)
    return points[:: -max(1, math.ceil(len(points) / _MAX_POINTS))][::-1]
