"""The curves that were measured, as a table of their ends and as a picture."""

import json
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from PIL import Image

from eval.metrics.bootstrap import estimate
from eval.report.figures import Curve, Panel, draw_curves
from experiments.pocket_curves.scorer import METRICS
from experiments.pocket_curves.variants import VARIANTS
from experiments.table import as_markdown

TITLES = {
    "concept": "concept (more is better): attributes of the concept that are drawn",
    "dino": "DINO (more is better): like held-out pictures, in shape and detail",
    "clip_i": "CLIP-I (more is better): like them, in kind and colour",
    "clip_t": "CLIP-T (more is better): does what the prompt says",
    "drift": "drift (less is better): other prompts' pictures, away from the base's",
    "others": "others (more is better): attributes of unrelated prompts that are drawn",
    "leak": "leak (less is better): attributes of the concept on its plain class",
}
OTHER_COLOUR = "#667085"
Runs = dict[str, list[dict[str, Any]]]
"""By way of training."""


def table(results: Path) -> str:
    """Markdown: a row a way of training after its last step; mean ± standard deviation of runs."""
    rows = []
    for name, runs in _read(results).items():
        last = [run["points"][-1] for run in runs]
        steps = sorted({point["step"] for point in last})
        row = [name, f"{runs[0]['parameters']:,}", str(len(runs)), " ".join(map(str, steps))]
        for metric in METRICS:
            values = [point[metric] for point in last]
            row.append(f"{mean(values):.3f} ± {_spread(values):.3f}")
        rows.append(row)
    return as_markdown(["method", "parameters", "runs", "step", *METRICS], rows)


def differences(results: Path, first: str) -> str:
    """Markdown: each way's last step less that of another, run by run of one concept and seed.

    In brackets is the interval in which the mean lies in 95 of 100 resamplings of concepts, and of
    seeds within each.
    """
    ends = {
        name: {(run["concept"], run["seed"]): run["points"][-1] for run in runs}
        for name, runs in _read(results).items()
    }
    if first not in ends:
        return ""
    rows = []
    for name, own in ends.items():
        shared = sorted(own.keys() & ends[first].keys())
        if name == first or not shared:
            continue
        row = [name, str(len(shared))]
        for metric in METRICS:
            by_concept: dict[str, list[float]] = {}
            for key in shared:
                change = own[key][metric] - ends[first][key][metric]
                by_concept.setdefault(key[0], []).append(change)
            value = estimate([np.array(changes) for changes in by_concept.values()])
            row.append(f"{value.mean:+.3f} [{value.low:+.3f}, {value.high:+.3f}]")
        rows.append(row)
    return as_markdown([f"less {first}", "runs", *METRICS], rows)


def picture(results: Path) -> Image.Image:
    """A panel a metric: means over runs against steps, in a band of their standard error.

    What a concept adds to every way's score is taken out before the error is computed: concepts
    differ far more than the ways do, and all ways have the same ones.
    """
    runs = _read(results)
    panels = [
        Panel(
            title, [_line(name, own, metric, _levels(runs, metric)) for name, own in runs.items()]
        )
        for metric, title in TITLES.items()
    ]
    count = sorted({len(own) for own in runs.values()})
    number = str(count[0]) if len(count) == 1 else f"{count[0]} to {count[-1]}"
    title = f"Means over {number} runs, and their standard errors within concepts"
    return draw_curves(title, panels, columns=2, size_px=(620, 260))


Levels = dict[tuple[str, int], float]
"""By concept and step."""


def _levels(runs: Runs, metric: str) -> Levels:
    """What each concept's runs have on average, whatever the way of training."""
    found: dict[tuple[str, int], list[float]] = {}
    for run in chain.from_iterable(runs.values()):
        for point in run["points"]:
            found.setdefault((run["concept"], point["step"]), []).append(point[metric])
    return {key: mean(values) for key, values in found.items()}


def _line(name: str, runs: Sequence[dict[str, Any]], metric: str, levels: Levels) -> Curve:
    steps = sorted({point["step"] for run in runs for point in run["points"]})
    at: dict[int, list[float]] = {step: [] for step in steps}
    beside: dict[int, list[float]] = {step: [] for step in steps}
    for run in runs:
        for point in run["points"]:
            at[point["step"]].append(point[metric])
            level = levels[run["concept"], point["step"]]
            beside[point["step"]].append(point[metric] - level)
    errors = [_spread(beside[step]) / len(beside[step]) ** 0.5 for step in steps]
    colour = VARIANTS[name].colour if name in VARIANTS else OTHER_COLOUR
    return Curve(name, colour, steps, [mean(at[step]) for step in steps], errors)


def _spread(values: Sequence[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _read(results: Path) -> Runs:
    """Runs by way of training, in the order of `variants.py`.

    A seed of a way counts when it has every concept, so that all means are over the same ones.
    """
    folders = {path.parent.name: path.parent for path in sorted(results.glob("*/*.json"))}
    names = [name for name in VARIANTS if name in folders]
    names += [name for name in folders if name not in VARIANTS]
    runs: Runs = {
        name: [json.loads(path.read_text()) for path in sorted(folders[name].glob("*.json"))]
        for name in names
    }
    concepts = {run["concept"] for run in chain.from_iterable(runs.values())}
    return {
        name: whole
        for name, own in runs.items()
        if (whole := [run for run in own if _concepts(own, run["seed"]) == concepts])
    }


def _concepts(runs: Sequence[dict[str, Any]], seed: int) -> set[str]:
    return {run["concept"] for run in runs if run["seed"] == seed}
