"""Scores and their intervals as a drawing: a point and a line for each result, metric by metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

from eval.metrics.bootstrap import Estimate

COLOURS = ("#667085", "#2f6fde", "#e0672f", "#12a39a", "#a05fb4", "#b86a00")
WIDTH, ROW, HEADING, GAP = 760, 22, 26, 18
LABELS, NUMBERS = 220, 60


def draw_plot(metrics: Mapping[str, Mapping[str, Estimate]]) -> str:
    """Return an SVG drawing; every metric has its own axis, so that differences can be seen.

    Args:
        metrics: By title, each result's score by name.
    """
    parts: list[str] = []
    y = 10.0
    for title, scores in metrics.items():
        y += HEADING
        parts.append(_text(0.0, y - 8, title, "heading"))
        parts += _axis(y, list(scores.items()))
        y += ROW * len(scores) + GAP
    style = (
        "text{font:13px system-ui,sans-serif;fill:#475467}.heading{font-weight:600;fill:#1b1f27}"
        ".number{font-variant-numeric:tabular-nums}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" '
        f'height="{y}" role="img" aria-label="Scores and their intervals">'
        f'<style>{style}</style><rect width="100%" height="100%" fill="#fff"/>'
        f"{''.join(parts)}</svg>\n"
    )


def _axis(top: float, scores: Sequence[tuple[str, Estimate]]) -> list[str]:
    """The rows of one metric, from the lowest end of an interval to the highest."""
    low = min(score.low for _, score in scores)
    high = max(score.high for _, score in scores)
    span = (high - low) or 1.0
    left, right = LABELS + 10, WIDTH - NUMBERS - 20

    def x_of(value: float) -> float:
        return round(left + (value - low) / span * (right - left), 1)

    parts = []
    for row, (name, score) in enumerate(scores):
        y = top + ROW * row + ROW / 2
        colour = COLOURS[row % len(COLOURS)]
        parts += [
            _text(float(LABELS), y + 4, _short(name), "name", "end"),
            f'<line x1="{left}" x2="{right}" y1="{y}" y2="{y}" stroke="#eaecf0"/>',
            f'<line x1="{x_of(score.low)}" x2="{x_of(score.high)}" y1="{y}" y2="{y}" '
            f'stroke="{colour}" stroke-width="3" stroke-linecap="round"/>',
            f'<circle cx="{x_of(score.mean)}" cy="{y}" r="5" fill="{colour}" stroke="#fff"/>',
            _text(WIDTH - 4.0, y + 4, f"{score.mean:.3f}", "number", "end"),
        ]
    return parts


def _short(name: str, letters: int = 30) -> str:
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'
