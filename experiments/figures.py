"""The paper's figures from results: accuracy against parameters, against rank, concepts by step."""

# matplotlib is typed in part only.
# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from experiments.config import Experiment, read_experiment
from experiments.results import Results
from experiments.table import Cell, Line, columns_of, lines_of, records_of
from trainer.errors import TrainerError
from trainer.files import write_atomically

# Blue for our methods, others told apart by brightness and mark too.
STYLES = {
    "loldu": ("#0b3c8c", "o"),
    "svfit": ("#a05fb4", "s"),
    "lora": ("#b86a00", "^"),
    "fourierft": ("#12a39a", "D"),
    "pissa": ("#e0a030", "v"),
    "vera": ("#5c8a3a", "P"),
    "adalora": ("#8c6a4a", "<"),
    "melora": ("#3f9bbf", ">"),
    "bitfit": ("#7a7f87", "X"),
    "ft": ("#1b1f27", "*"),
}
NOTHING = ("lp", "none")


def draw_figures(scale: str, results: Results, folder: Path) -> list[Path]:
    """Draw every figure that has results.

    Raises:
        TrainerError: None has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in FIGURES.items():
        figure = draw(scale, results)
        if figure is not None:
            file = folder / f"{name}-{scale}.png"
            buffer = io.BytesIO()
            figure.savefig(buffer, dpi=110, bbox_inches="tight")
            plt.close(figure)
            write_atomically(file, buffer.getvalue())
            drawn.append(file)
    if not drawn:
        raise TrainerError(f"There are no results at {scale} scale: make them with `run`.")
    return drawn


def _parameters(names: Sequence[str]) -> Callable[[str, Results], Figure | None]:
    """Accuracy against the number of trained parameters, a panel a column (Figure 1)."""

    def draw(scale: str, results: Results) -> Figure | None:
        experiments = [read_experiment(name) for name in names]
        lines = [line for e in experiments for line in lines_of(e, scale, results)]
        lines = [line for line in lines if line.parameters is not None]
        columns = columns_of(experiments[0], scale)
        if not lines:
            return None
        figure, axes = _panels(len(columns))
        for axis, column in zip(axes, columns, strict=True):
            _draw_parameters(axis, column, lines, experiments[0])
        axes[0].legend(fontsize=8, loc="best")
        return figure

    return draw


def _draw_parameters(
    axis: Axes, column: str, lines: Sequence[Line], experiment: Experiment
) -> None:
    by_method: dict[str, dict[int, Cell]] = {}
    for line in lines:
        cell = line.cells.get(column)
        if cell is None or cell.value is None or line.parameters is None or line.row.variant:
            continue
        method = experiment.owner_of(line.row)[1].method
        by_method.setdefault(method, {})[line.parameters] = cell
    for method, cells in by_method.items():
        if method in NOTHING:
            level = _value(next(iter(cells.values())))
            axis.axhline(level, color="#b0b4bb", ls=":", lw=1.2, label=f"{method} (dotted)")
            continue
        color, mark = STYLES.get(method, ("#667085", "."))
        counts = sorted(cells)
        axis.errorbar(
            counts,
            [_value(cells[n]) for n in counts],
            yerr=[cells[n].spread for n in counts],
            label=method,
            color=color,
            marker=mark,
            ms=5,
            lw=1.4 if len(counts) > 2 else 0,
            elinewidth=0.8,
        )
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set_xlabel("trained parameters, without the head")
    axis.set_title(column, fontsize=10)


def _ranks(scale: str, results: Results) -> Figure | None:
    """Accuracy against rank, a panel a data set (Figure 4)."""
    experiment = read_experiment("rank")
    if scale not in experiment.scales:
        return None
    columns = columns_of(experiment, scale)
    curves: dict[str, dict[int, Line]] = {}
    for line in lines_of(experiment, scale, results):
        runs = next(iter(experiment.runs(line.row, scale)))
        if "r" in runs.options and runs.method in ("loldu", "svfit") and line.parameters:
            kind = f"{runs.method}, {line.row.variant}" if line.row.variant else runs.method
            curves.setdefault(kind, {})[runs.options["r"]] = line
    if not curves:
        return None
    figure, axes = _panels(len(columns))
    for axis, column in zip(axes, columns, strict=True):
        for place, (kind, by_rank) in enumerate(curves.items()):
            ranks = [r for r in sorted(by_rank) if by_rank[r].cells[column].value is not None]
            cells = [by_rank[r].cells[column] for r in ranks]
            color, mark = STYLES[kind.partition(",")[0]]
            axis.errorbar(
                ranks,
                [_value(cell) for cell in cells],
                yerr=[cell.spread for cell in cells],
                label=kind,
                color=color,
                marker=mark,
                ls=("-", "--", ":", "-.")[place % 4],
                lw=1.4,
                ms=4,
                elinewidth=0.8,
            )
        full = max(max(by_rank) for by_rank in curves.values())
        axis.axvline(full / 3, color="#b0b4bb", ls=":", lw=1.2)
        axis.set_xscale("log", base=2)
        axis.set_xlabel("rank (dotted: a third of full rank)")
        axis.set_title(column, fontsize=10)
    axes[0].legend(fontsize=8, loc="best")
    return figure


def _progression(scale: str, results: Results) -> Figure | None:
    """What each method draws at each step, and how like the concept it is (Figure 5)."""
    experiment = read_experiment("personalization")
    shown = []
    for row in experiment.rows_at(scale):
        records = records_of(experiment, row, scale, results)
        first = next(iter(experiment.runs(row, scale)))
        strip = results.file(first).with_suffix(".png")
        if records and strip.exists():
            shown.append((row.label, records, strip))
    if not shown:
        return None
    figure = plt.figure(figsize=(10, 1.15 * len(shown) + 3), layout="constrained")
    grid = figure.add_gridspec(len(shown) + 1, 2, height_ratios=[1] * len(shown) + [2.6])
    for place, (label, records, strip) in enumerate(shown):
        axis = figure.add_subplot(grid[place, :])
        with Image.open(strip) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        axis.imshow(pixels)
        edge, steps = pixels.shape[0], [point["step"] for point in records[0]["history"]]
        axis.set_xticks([edge * (i + 0.5) for i in range(len(steps))], map(str, steps), fontsize=7)
        axis.set_yticks([])
        axis.set_ylabel(label, rotation=0, ha="right", va="center", fontsize=9)
    for place, metric in enumerate(("dino", "clip_i")):
        axis = figure.add_subplot(grid[len(shown), place])
        for label, records, _ in shown:
            steps = [point["step"] for point in records[0]["history"]]
            values = [mean(r["history"][i][metric] for r in records) for i in range(len(steps))]
            axis.plot(steps, values, marker=".", label=label)
        axis.set_title(f"{metric} by step", fontsize=10)
        if place:
            axis.legend(fontsize=7)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    across = 2 if count == 4 else min(count, 3)
    down = -(-count // across)
    figure, axes = plt.subplots(
        down, across, figsize=(4.4 * across, 3.3 * down), squeeze=False, layout="constrained"
    )
    flat = list(axes.flat)
    for axis in flat[count:]:
        axis.remove()
    return figure, flat[:count]


def _value(cell: Cell) -> float:
    assert cell.value is not None
    return cell.value


FIGURES: dict[str, Callable[[str, Results], Figure | None]] = {
    "vision": _parameters(["vision", "rank"]),
    "rank": _ranks,
    "glue": _parameters(["glue"]),
    "instruct": _parameters(["instruct"]),
    "personalization": _progression,
}
