"""The paper's figures from results: scores against parameters and rank, losses, concepts."""

# matplotlib is typed in part only.
# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
from experiments.results import Record, Results
from experiments.table import Cell, Line, columns_of, lines_of, records_of
from loldu.errors import LoLDUError
from loldu.files import write_atomically

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
    "lp": ("#b0b4bb", "."),
}
PLAIN = ("#667085", ".")
VARIANT_MARKS = ("o", "p", "^", "d")
NOTHING = ("lp", "none")
CONCEPT_COLORS = ("#1b1f27", "#8a8f98", "#b86a00", "#2b7cc4", "#a05fb4", "#0b3c8c")


def draw_figures(scale: str, results: Results, folder: Path) -> list[Path]:
    """Draw every figure that has results.

    Raises:
        LoLDUError: None has.
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
        raise LoLDUError(f"There are no results at {scale} scale: make them with `run`.")
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
        if cell is None or cell.value is None or line.parameters is None:
            continue
        if line.row.variant and line.row not in experiment.rows:
            continue  # of another table, which has a figure for it
        method = experiment.owner_of(line.row)[1].method
        kind = f"{method}, {line.row.variant}" if line.row.variant else method
        by_method.setdefault(kind, {})[line.parameters] = cell
    variants = [kind for kind in by_method if "," in kind]
    for kind, cells in by_method.items():
        method = kind.partition(",")[0]
        if method in NOTHING:
            level = _value(next(iter(cells.values())))
            axis.axhline(level, color="#b0b4bb", ls=":", lw=1.2, label=f"{method} (dotted)")
            continue
        color, mark = STYLES.get(method, PLAIN)
        if kind != method:
            mark = VARIANT_MARKS[variants.index(kind) % len(VARIANT_MARKS)]
        counts = sorted(cells)
        axis.errorbar(
            counts,
            [_value(cells[n]) for n in counts],
            yerr=[cells[n].spread for n in counts],
            label=kind,
            color=color,
            marker=mark,
            mfc=color if kind == method else "white",
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


def _convergence(scale: str, results: Results) -> Figure | None:
    """The training loss of each epoch, a panel a data set: Table II's "faster convergence"."""
    experiment = read_experiment("efficiency")
    data = experiment.at(scale).data
    figure, axes = _panels(len(data))
    found = False
    for axis, name in zip(axes, data, strict=True):
        for row in experiment.rows_at(scale):
            records = records_of(experiment, row, scale, results)
            curves = [r["losses"] for r in records if r["data"] == name and r.get("losses")]
            if curves:
                found = True
                color, mark = STYLES.get(experiment.owner_of(row)[1].method, PLAIN)
                epochs = range(1, len(curves[0]) + 1)
                levels = [mean(at) for at in zip(*curves, strict=True)]
                axis.plot(
                    epochs,
                    levels,
                    label=row.label,
                    color=color,
                    marker=mark,
                    mfc="white" if row.variant else color,
                    ls="--" if row.variant else "-",
                    ms=4,
                    lw=1.4,
                )
        axis.set_xlabel("epoch")
        axis.set_title(name, fontsize=10)
    if not found:
        plt.close(figure)
        return None
    axes[0].set_ylabel("training loss")
    axes[0].legend(fontsize=8, loc="best")
    return figure


@dataclass(frozen=True)
class _Taught:
    """A row of the table, its results over all concepts and seeds, and the strip of one concept."""

    label: str
    color: str
    records: list[Record]
    strip: np.ndarray

    @property
    def steps(self) -> list[int]:
        """At which it was measured."""
        return [point["step"] for point in self.records[0]["history"]]


def _taught(scale: str, results: Results, data: str) -> list[_Taught]:
    """The rows that were run on a concept, in the order of the table."""
    experiment = read_experiment("personalization")
    found = []
    for row in experiment.rows_at(scale):
        first = next(iter(experiment.runs(row, scale, [data])))
        strip = results.file(first).with_suffix(".png")
        records = records_of(experiment, row, scale, results)
        if records and strip.exists():
            with Image.open(strip) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            color = CONCEPT_COLORS[len(found) % len(CONCEPT_COLORS)]
            found.append(_Taught(row.label, color, records, pixels))
    return found


def _progression(scale: str, results: Results) -> Figure | None:
    """What each method draws of the first concept at each step, and how like all are (Figure 5)."""
    shown = _taught(scale, results, read_experiment("personalization").at(scale).data[0])
    if not shown:
        return None
    figure = plt.figure(figsize=(10, 1.15 * len(shown) + 3), layout="constrained")
    grid = figure.add_gridspec(len(shown) + 1, 2, height_ratios=[1] * len(shown) + [2.6])
    for place, taught in enumerate(shown):
        axis = figure.add_subplot(grid[place, :])
        axis.imshow(taught.strip)
        edge, names = taught.strip.shape[0], ["the concept", *map(str, taught.steps)]
        axis.set_xticks([edge * (i + 0.5) for i in range(len(names))], names, fontsize=7)
        axis.set_yticks([])
        axis.set_ylabel(taught.label, rotation=0, ha="right", va="center", fontsize=9)
    for place, metric in enumerate(("dino", "clip_i")):
        axis = figure.add_subplot(grid[len(shown), place])
        for taught in shown:
            values = [
                mean(r["history"][i][metric] for r in taught.records)
                for i in range(len(taught.steps))
            ]
            axis.plot(taught.steps, values, marker=".", label=taught.label, color=taught.color)
        axis.set_title(f"{metric} by step", fontsize=10)
        if place:
            axis.legend(fontsize=7)
    return figure


def _gallery(scale: str, results: Results) -> Figure | None:
    """Every concept, and what each method draws of it in the end (Figure 6)."""
    concepts = read_experiment("personalization").at(scale).data
    taught = [found for name in concepts if (found := _taught(scale, results, name))]
    if not taught:
        return None
    across = 1 + max(map(len, taught))
    size = (1.6 * across, 1.8 * len(taught))
    figure, axes = plt.subplots(
        len(taught), across, figsize=size, squeeze=False, layout="constrained"
    )
    for row, found in zip(axes, taught, strict=True):
        edge = found[0].strip.shape[0]
        pictures = [("the concept", found[0].strip[:, :edge])]
        pictures += [(one.label, one.strip[:, -edge:]) for one in found]
        for axis in row:
            axis.axis("off")
        for axis, (label, pixels) in zip(row, pictures, strict=False):
            axis.imshow(pixels)
            axis.set_title(label.replace(" (", "\n("), fontsize=8)
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
    "efficiency": _convergence,
    "personalization": _progression,
    "concepts": _gallery,
}
