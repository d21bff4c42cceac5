"""The paper's figures from results: scores against parameters and rank, losses, concepts."""

# matplotlib is typed in part only.
# pyright: reportUnknownMemberType=false, reportPrivateImportUsage=false

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter
from PIL import Image

from eval.report.figures import Curve, Panel, draw_curves
from experiments.config import Experiment, read_experiment
from experiments.results import Record, Results
from experiments.table import Cell, MeasuredRow, columns_of, measured_rows, records_of
from loldu.errors import LoLDUError
from loldu.files import save_png, write_atomically

# Our methods are blue; brightness and marks tell all methods apart without colors.
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
GRAY = "#b0b4bb"
VARIANT_MARKS = ("o", "p", "^", "d")
NOTHING = ("lp", "none")
CONCEPT_COLORS = ("#1b1f27", "#8a8f98", "#b86a00", "#2b7cc4", "#a05fb4", "#0b3c8c")
CURVES = {
    "concept": "concept (more is better): attributes of the concept that are drawn",
    "dino": "DINO (more is better): like held-out pictures, in shape and detail",
    "clip_i": "CLIP-I (more is better): like them, in kind and color",
    "clip_t": "CLIP-T (more is better): does what the prompt says",
    "drift": "drift (less is better): other prompts' pictures, away from the base's",
    "others": "others (more is better): attributes of unrelated prompts that are drawn",
    "leak": "leak (less is better): attributes of the concept on its plain class",
}
Draw = Callable[[str, Results], Figure | Image.Image | None]


def draw_figures(scale: str, results: Results, folder: Path) -> list[Path]:
    """Draw every figure that has results, and return the files.

    Raises:
        LoLDUError: If no figure has results.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, draw in FIGURES.items():
        figure = draw(scale, results)
        if figure is None:
            continue
        file = folder / f"{name}-{scale}.png"
        if isinstance(figure, Image.Image):
            save_png(figure, file)
        else:
            buffer = io.BytesIO()
            figure.savefig(buffer, dpi=110, bbox_inches="tight")
            plt.close(figure)
            write_atomically(file, buffer.getvalue())
        drawn.append(file)
    if not drawn:
        raise LoLDUError(f"There are no results at {scale} scale: make them with `run`.")
    return drawn


def _parameters(*names: str) -> Draw:
    """Return a figure of accuracy against trained parameters, one panel a column (Figure 1)."""

    def draw(scale: str, results: Results) -> Figure | None:
        experiments = [read_experiment(name) for name in names]
        rows = [row for e in experiments for row in measured_rows(e, scale, results)]
        rows = [row for row in rows if row.parameters is not None]
        if not rows:
            return None
        columns = columns_of(experiments[0], scale)
        figure, axes = _panels(columns, "trained parameters, without the head")
        for axis, column in zip(axes, columns, strict=True):
            _draw_parameters(axis, column, rows, experiments[0])
        axes[0].legend(fontsize=8, loc="best")
        return figure

    return draw


def _draw_parameters(
    axis: Axes, column: str, rows: Sequence[MeasuredRow], experiment: Experiment
) -> None:
    by_method: dict[str, dict[int, Cell]] = {}
    for row in rows:
        cell = row.cells.get(column)
        if cell is None or cell.value is None or row.parameters is None:
            continue
        if row.row.variant and row.row not in experiment.rows:
            continue  # a row of another table, which has its own figure
        kind = _kind(experiment.owner_of(row.row)[1].method, row)
        by_method.setdefault(kind, {})[row.parameters] = cell
    variants = [kind for kind in by_method if "," in kind]
    for kind, cells in by_method.items():
        method = kind.partition(",")[0]
        if method in NOTHING:
            level: Any = next(iter(cells.values())).value
            axis.axhline(level, color=GRAY, ls=":", lw=1.2, label=f"{method} (dotted)")
            continue
        color, mark = STYLES.get(method, PLAIN)
        if kind != method:
            mark = VARIANT_MARKS[variants.index(kind) % len(VARIANT_MARKS)]
        filled, width = color if kind == method else "white", 1.4 if len(cells) > 2 else 0
        _line(axis, cells, label=kind, color=color, marker=mark, mfc=filled, ms=5, lw=width)
    axis.set_xscale("log")
    axis.xaxis.set_minor_formatter(NullFormatter())


def _ranks(scale: str, results: Results) -> Figure | None:
    """Draw accuracy against rank, one panel a dataset (Figure 4)."""
    experiment = read_experiment("rank")
    if scale not in experiment.scales:
        return None
    curves: dict[str, dict[int, MeasuredRow]] = {}
    for row in measured_rows(experiment, scale, results):
        run = next(iter(experiment.runs(row.row, scale)))
        if "r" in run.options and run.method in ("loldu", "svfit") and row.parameters:
            curves.setdefault(_kind(run.method, row), {})[run.options["r"]] = row
    if not curves:
        return None
    full = max(max(by_rank) for by_rank in curves.values())
    columns = columns_of(experiment, scale)
    figure, axes = _panels(columns, "rank (dotted: a third of full rank)")
    for axis, column in zip(axes, columns, strict=True):
        for place, (kind, by_rank) in enumerate(curves.items()):
            color, mark = STYLES[kind.partition(",")[0]]
            cells = {r: row.cells[column] for r, row in by_rank.items()}
            style = ("-", "--", ":", "-.")[place % 4]
            _line(axis, cells, label=kind, color=color, marker=mark, ls=style, lw=1.4, ms=4)
        axis.axvline(full / 3, color=GRAY, ls=":", lw=1.2)
        axis.set_xscale("log", base=2)
    axes[0].legend(fontsize=8, loc="best")
    return figure


def _convergence(scale: str, results: Results) -> Figure | None:
    """Draw the training loss of each epoch, one panel a dataset (Table II, convergence)."""
    experiment = read_experiment("efficiency")
    data = experiment.at(scale).data
    rows = [(row, records_of(experiment, row, scale, results)) for row in experiment.rows_at(scale)]
    if not any(record.get("losses") for _, records in rows for record in records):
        return None
    figure, axes = _panels(data, "epoch")
    for axis, name in zip(axes, data, strict=True):
        for row, records in rows:
            curves = [r["losses"] for r in records if r["data"] == name and r.get("losses")]
            if not curves:
                continue
            color, mark = STYLES.get(experiment.owner_of(row)[1].method, PLAIN)
            axis.plot(
                range(1, len(curves[0]) + 1),
                [mean(at) for at in zip(*curves, strict=True)],
                label=row.label,
                color=color,
                marker=mark,
                mfc="white" if row.variant else color,
                ls="--" if row.variant else "-",
                ms=4,
                lw=1.4,
            )
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
        """Measured steps."""
        return [point["step"] for point in self.records[0]["history"]]


def _taught(scale: str, results: Results, data: str) -> list[_Taught]:
    """Return the rows with results on a concept, in the order of the table."""
    experiment = read_experiment("personalization")
    found = []
    for row in experiment.rows_at(scale):
        strip = results.picture(next(iter(experiment.runs(row, scale, [data]))))
        records = records_of(experiment, row, scale, results)
        if records and strip.exists():
            with Image.open(strip) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            color = CONCEPT_COLORS[len(found) % len(CONCEPT_COLORS)]
            found.append(_Taught(row.label, color, records, pixels))
    return found


def _progression(scale: str, results: Results) -> Figure | None:
    """Draw each method's pictures of the first concept by step, and mean likeness (Figure 5)."""
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
            histories = [r["history"] for r in taught.records]
            values = [mean(h[i][metric] for h in histories) for i in range(len(taught.steps))]
            axis.plot(taught.steps, values, marker=".", label=taught.label, color=taught.color)
        axis.set_title(f"{metric} by step", fontsize=10)
        if place:
            axis.legend(fontsize=7)
    return figure


def _gallery(scale: str, results: Results) -> Figure | None:
    """Draw every concept beside each method's last picture of it (Figure 6)."""
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


def _curves(scale: str, results: Results) -> Image.Image | None:
    """Draw a panel a metric: means over runs against steps, in a band of standard errors."""
    from experiments.kinds.curves.table import curve, levels, runs_of

    experiment = read_experiment("pocket_curves")
    if scale not in experiment.scales or not (runs := runs_of(experiment, scale, results)):
        return None
    colors = {row.label: row.color or PLAIN[0] for row in experiment.rows}
    panels = [
        Panel(
            title,
            [
                Curve(name, colors[name], *curve(own, metric, levels(runs, metric)))
                for name, own in runs.items()
            ],
        )
        for metric, title in CURVES.items()
    ]
    counts = sorted({len(own) for own in runs.values()})
    number = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
    title = f"Means over {number} runs, and their standard errors within concepts"
    return draw_curves(title, panels, columns=2, size_px=(620, 265))


def _sheet(scale: str, results: Results) -> Image.Image | None:
    """Show true pictures of the embedded concepts beside those of every method, if there are."""
    from experiments.kinds.concepts.table import comparison

    experiment = read_experiment("pocket_concepts")
    return comparison(experiment, scale, results) if scale in experiment.scales else None


def _panels(titles: Sequence[str], below: str) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for each title, and the panels; all have one label below."""
    across = 2 if len(titles) == 4 else min(len(titles), 3)
    down = -(-len(titles) // across)
    size = (4.4 * across, 3.3 * down)
    figure, axes = plt.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    flat = list(axes.flat)
    for axis in flat[len(titles) :]:
        axis.remove()
    for axis, title in zip(flat, titles, strict=False):
        axis.set_xlabel(below)
        axis.set_title(title, fontsize=10)
    return figure, flat[: len(titles)]


def _line(axis: Axes, cells: dict[int, Cell], **style: Any) -> None:  # noqa: ANN401
    """Draw measured cells against their keys, with the spread over seeds."""
    known = {place: cell for place, cell in sorted(cells.items()) if cell.value is not None}
    levels: Any = [cell.value for cell in known.values()]
    spreads = [cell.spread for cell in known.values()]
    axis.errorbar([*known], levels, yerr=spreads, elinewidth=0.8, **style)


def _kind(method: str, row: MeasuredRow) -> str:
    return f"{method}, {row.row.variant}" if row.row.variant else method


FIGURES: dict[str, Draw] = {
    "vision": _parameters("vision", "rank"),
    "rank": _ranks,
    "glue": _parameters("glue"),
    "instruct": _parameters("instruct"),
    "efficiency": _convergence,
    "personalization": _progression,
    "concepts": _gallery,
    "curves": _curves,
    "sheet": _sheet,  # needs pictures of runs on this machine: they are not committed
}
