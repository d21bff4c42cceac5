"""Tables and figure of learning curves: the end of every curve, and the way there."""

from collections.abc import Sequence
from itertools import chain
from statistics import mean

import numpy as np

from eval.metrics.bootstrap import estimate
from experiments.config import Experiment, Row
from experiments.kinds.curves.scorer import METRICS
from experiments.results import Record, Results
from experiments.table import as_markdown, mean_and_spread, records_of, spread

Runs = dict[str, list[Record]]
"""Results by label of the row."""
Levels = dict[tuple[str, int], float]
"""Mean score by concept and step."""


def table(experiment: Experiment, scale: str, results: Results) -> str:
    """Return two tables as Markdown: the ends of all curves, and differences from one row."""
    runs = runs_of(experiment, scale, results)
    if not runs:
        return "Not run."
    first = experiment.row(experiment.compare_with).label
    return f"{ends(runs)}\n\n{differences(runs, first)}"


def ends(runs: Runs) -> str:
    """Return Markdown with one row per curve: its last step, mean ± standard deviation of runs."""
    rows = []
    for name, own in runs.items():
        last = [run["history"][-1] for run in own]
        steps = sorted({point["step"] for point in last})
        row = [name, f"{own[0]['parameters']:,}", str(len(own)), " ".join(map(str, steps))]
        row += [mean_and_spread([point[metric] for point in last]) for metric in METRICS]
        rows.append(row)
    return as_markdown(["method", "parameters", "runs", "step", *METRICS], rows)


def differences(runs: Runs, first: str) -> str:
    """Return Markdown with the last step of each row less that of `first`, run by run.

    Runs of the same concept and seed are paired. The brackets hold the 95% bootstrap interval of
    the mean; it resamples concepts, and seeds within each.
    """
    last = {
        name: {(run["data"], run["seed"]): run["history"][-1] for run in own}
        for name, own in runs.items()
    }
    if first not in last:
        return ""
    rows = []
    for name, own in last.items():
        shared = sorted(own.keys() & last[first].keys())
        if name == first or not shared:
            continue
        row = [name, str(len(shared))]
        for metric in METRICS:
            by_concept: dict[str, list[float]] = {}
            for key in shared:
                change = own[key][metric] - last[first][key][metric]
                by_concept.setdefault(key[0], []).append(change)
            value = estimate([np.array(changes) for changes in by_concept.values()])
            row.append(f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]")
        rows.append(row)
    return as_markdown([f"less {first}", "runs", *METRICS], rows)


def runs_of(experiment: Experiment, scale: str, results: Results) -> Runs:
    """Return the results of every row.

    A seed counts if it has every concept, so that all means are over the same concepts.
    """
    rows: list[Row] = experiment.rows_at(scale)
    runs = {row.label: records_of(experiment, row, scale, results) for row in rows}
    concepts = {run["data"] for run in chain.from_iterable(runs.values())}
    return {
        name: whole
        for name, own in runs.items()
        if (whole := [run for run in own if _concepts(own, run["seed"]) == concepts])
    }


def levels(runs: Runs, metric: str) -> Levels:
    """Return the mean of each concept over all rows, at each step."""
    found: dict[tuple[str, int], list[float]] = {}
    for run in chain.from_iterable(runs.values()):
        for point in run["history"]:
            found.setdefault((run["data"], point["step"]), []).append(point[metric])
    return {key: mean(values) for key, values in found.items()}


def curve(
    runs: Sequence[Record], metric: str, levels: Levels
) -> tuple[list[int], list[float], list[float]]:
    """Return the steps of a curve, its means over runs, and their standard errors.

    The error leaves out what a concept adds to the score of every row: concepts differ far more
    than rows do, and all rows have the same concepts.
    """
    steps = sorted({point["step"] for run in runs for point in run["history"]})
    at: dict[int, list[float]] = {step: [] for step in steps}
    beside: dict[int, list[float]] = {step: [] for step in steps}
    for run in runs:
        for point in run["history"]:
            at[point["step"]].append(point[metric])
            beside[point["step"]].append(point[metric] - levels[run["data"], point["step"]])
    errors = [spread(beside[step]) / len(beside[step]) ** 0.5 for step in steps]
    return steps, [mean(at[step]) for step in steps], errors


def _concepts(runs: Sequence[Record], seed: int) -> set[str]:
    return {run["data"] for run in runs if run["seed"] == seed}
