"""`python -m eval compare`: the differences between results, with their intervals."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from eval.config import CompareConfig
from eval.metrics import METRICS
from eval.report.comparison import compare_results
from eval.report.figures import draw_intervals
from eval.report.output import refuse_to_overwrite, write
from eval.report.page import compare_page
from eval.report.tables import comparison_rows, difference_rows, markdown_table
from eval.result import Result, read_result
from loldu.errors import LoLDUError
from loldu.files import write_atomically

logger = logging.getLogger(__name__)


def compare(config: CompareConfig) -> None:
    """Compare result files; print the tables, and write the plot and the files.

    Raises:
        LoLDUError: If a file is not a result, or the results were scored in different ways.
    """
    output = config.output
    refuse_to_overwrite([output.json, output.html, config.plot], overwrite=output.overwrite)
    if config.plot is not None and config.plot.suffix.lower() != ".svg":
        raise LoLDUError(f"--plot {config.plot} must end in .svg; the plot is an SVG file.")
    comparison = compare_results(_read(config), samples=config.bootstrap_samples)
    tables = [comparison_rows(comparison), difference_rows(comparison)]
    scores = {
        name: {metric: result.estimates[metric] for metric in comparison.metrics}
        for name, result in comparison.results.items()
    }
    plot = draw_intervals(
        {METRICS[m].title: {n: own[m] for n, own in scores.items()} for m in comparison.metrics}
    )
    if config.plot is not None:
        write_atomically(config.plot, plot)
        logger.info("Wrote %s", config.plot)
    content = {
        "scores": {n: {m: asdict(e) for m, e in own.items()} for n, own in scores.items()},
        "differences": {
            name: {metric: asdict(value) for metric, value in own.items()}
            for name, own in comparison.differences.items()
        },
    }
    text = "\n\n".join(markdown_table(rows) for rows in tables)
    write(output, text, content, lambda: compare_page(tables, plot))


def _read(config: CompareConfig) -> dict[str, Result]:
    if len(config.results) < 2:
        raise LoLDUError(
            "Give two or more results to compare: files that --json or a report wrote."
        )
    names = config.names or _names(config.results)
    if len(names) != len(config.results) or len(set(names)) < len(names):
        raise LoLDUError(
            f"--names must give the {len(config.results)} results a name each, all different; it "
            f"has {', '.join(names)}."
        )
    return {name: read_result(path) for name, path in zip(names, config.results, strict=True)}


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the file names; if two are equal, the folder names, or else the whole paths."""
    for name_of in (lambda p: p.stem, lambda p: p.resolve().parent.name, str):
        names = [name_of(path) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{number} {path}" for number, path in enumerate(paths, start=1)]
