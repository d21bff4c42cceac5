"""Tables of results, as rows of strings; the first row is the heading."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from eval.metrics import METRICS
from eval.report.before_after import BeforeAfter
from eval.report.comparison import Comparison
from eval.result import Result


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; only the first column is left-aligned."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    rule = [":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]
    return "\n".join([lines[0], "| " + " | ".join(rule) + " |", *lines[1:]])


def result_rows(result: Result) -> list[list[str]]:
    """Return a row for each subject, and a row for all of them if there are several."""
    rows = [["subject", "pictures", "real", *titles(result.metrics)]]
    for subject in result.subjects:
        scores = map(str, result.of_subject(subject).values())
        rows.append([subject.name, str(len(subject.pictures)), str(subject.real), *scores])
    if len(result.subjects) > 1:
        count = sum(len(subject.pictures) for subject in result.subjects)
        total = sum(subject.real for subject in result.subjects)
        scores = map(str, result.estimates.values())
        rows.append([f"all ({result.protocol.aggregate})", str(count), str(total), *scores])
    return rows


def comparison_rows(comparison: Comparison) -> list[list[str]]:
    """Return a row for each result with its scores."""
    rows = [["result", *titles(comparison.metrics)]]
    for name, result in comparison.results.items():
        rows.append([name, *(str(result.estimates[metric]) for metric in comparison.metrics)])
    return rows


def difference_rows(comparison: Comparison) -> list[list[str]]:
    """Return the differences from the first result; * marks those whose interval excludes 0."""
    first = next(iter(comparison.results))
    rows = [[f"less {first}", *titles(comparison.metrics)]]
    for name, own in comparison.differences.items():
        cells = []
        for metric in comparison.metrics:
            value = own[metric]
            mark = " *" if value.low > 0 or value.high < 0 else ""
            cells.append(value.as_change() + mark)
        rows.append([name, *cells])
    return rows


def before_after_rows(report: BeforeAfter) -> list[list[str]]:
    """Return a row for each score: before, after, change, and the score of real pictures.

    The headline scores come first, those of other prompts in the middle, all others last.
    """
    rows = [["", "before", "after", "change", "real pictures"]]
    first = [row for name, row in _gain_rows(report) if METRICS[name].headline]
    last = [row for name, row in _gain_rows(report) if not METRICS[name].headline]
    others = [
        [f"{title}{how}", *cells, ""]
        for way, how in (("adapted", ""), ("always_on", ", always on"))
        for title, cells in _other_rows(report.others, way)
    ]
    return rows + first + others + last


def _gain_rows(report: BeforeAfter) -> Iterator[tuple[str, list[str]]]:
    """Yield name and row of each score of the concept's pictures."""
    for name, gain in report.gains.items():
        real = report.real.get(name)
        yield (
            name,
            [
                METRICS[name].title,
                f"{report.base.estimates[name].mean:.3f}",
                f"{report.adapted.estimates[name].mean:.3f}",
                gain.as_change(),
                "" if real is None else f"{real:.3f}",
            ],
        )


def _other_rows(others: Mapping[str, float], way: str) -> Iterator[tuple[str, list[str]]]:
    """Yield the scores of other prompts that were drawn in one way: before, after and change."""
    for title, kind in (
        ("CLIP-T of other prompts", ""),
        ("DINO of the class without the token", "class_"),
    ):
        if kind + way in others:
            before, after = others[f"{kind}base"], others[kind + way]
            yield title, [f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}"]
    for name, metric in METRICS.items():
        key = name if way == "adapted" else f"{name}_{way}"
        if metric.against == "base" and key in others:
            yield f"{metric.title} of other prompts", ["0", f"{others[key]:.3f}", ""]


def titles(metrics: Sequence[str]) -> list[str]:
    """Return the titles of metrics."""
    return [METRICS[name].title for name in metrics]
