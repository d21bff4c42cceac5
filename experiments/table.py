"""A table of the paper with what was measured: the paper's number, ours and the difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from experiments.config import Experiment, Row, Scale
from experiments.results import Record, Results

NOT_RUN = "not run"


@dataclass(frozen=True)
class Cell:
    """One row on one data set.

    Attributes:
        values: The measured scores, one a seed that was run.
        seeds: How many there should be.
        summary: How they become one number.
        paper: The paper's, if it has one.
        decimals: Digits after the point.
    """

    values: tuple[float, ...]
    seeds: int
    summary: str
    paper: float | None = None
    decimals: int = 2

    @property
    def value(self) -> float | None:
        """The seeds' scores as one number; None where nothing was run."""
        if not self.values:
            return None
        return median(self.values) if self.summary == "median" else mean(self.values)

    @property
    def spread(self) -> float:
        """Standard deviation over seeds."""
        return stdev(self.values) if len(self.values) > 1 else 0.0

    def __str__(self) -> str:
        """As a table shows it: measured ± spread over seeds, the paper's, the difference."""
        value, form = self.value, f".{self.decimals}f"
        if value is None:
            return NOT_RUN if self.paper is None else f"{NOT_RUN} (paper {self.paper:{form}})"
        text = f"{value:{form}}"
        if len(self.values) > 1:
            text += f" ± {self.spread:{form}}"
        if len(self.values) < self.seeds:
            text += f", {len(self.values)} of {self.seeds} seeds"
        if self.paper is not None:
            text += f" (paper {self.paper:{form}}, {value - self.paper:+{form}})"
        return text


@dataclass(frozen=True)
class Line:
    """One row of a table: its cells by data set and its number of parameters."""

    row: Row
    cells: dict[str, Cell]
    parameters: int | None
    average: Cell


def lines_of(experiment: Experiment, scale: str, results: Results) -> list[Line]:
    """The rows of a table with what was measured."""
    return [_line(experiment, row, scale, results) for row in experiment.rows_at(scale)]


def records_of(experiment: Experiment, row: Row, scale: str, results: Results) -> list[Record]:
    """All results of a row."""
    found = (results.read(run) for run in experiment.runs(row, scale))
    return [record for record in found if record is not None]


def markdown(experiment: Experiment, scale: str, results: Results) -> str:
    """A table as Markdown."""
    names = columns_of(experiment, scale)
    header = ["method", "parameters", *names]
    if many := len(names) > 1:
        header.append("average")
    body = []
    for line in lines_of(experiment, scale, results):
        counted = "" if line.parameters is None else f"{line.parameters:,}"
        told = line.row.paper.get("parameters")
        if scale == "full" and told is not None:
            counted = f"{counted or NOT_RUN} (paper {told:,.0f})"
        cells = [str(line.cells[name]) for name in names]
        body.append([line.row.label, counted, *cells, *([str(line.average)] if many else [])])
    return as_markdown(header, body)


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def _line(experiment: Experiment, row: Row, scale: str, results: Results) -> Line:
    here = experiment.at(scale)
    records = records_of(experiment, row, scale, results)
    paper = row.paper if scale == "full" else {}
    # Every column has a score a seed; a seed counts in the average where it has all of them.
    by_seed = [
        _scores(experiment, here, [r for r in records if r["seed"] == s]) for s in here.seeds
    ]
    names = columns_of(experiment, scale)
    seeds = len(here.seeds)
    cells = {
        name: Cell(
            tuple(scores[name] for scores in by_seed if name in scores),
            seeds,
            here.summary,
            paper.get(name),
            experiment.decimals,
        )
        for name in names
    }
    whole = tuple(mean(scores.values()) for scores in by_seed if len(scores) == len(names))
    average = Cell(whole, seeds, "mean", paper.get("average"), experiment.decimals)
    return Line(row, cells, max((r["parameters"] for r in records), default=None), average)


def columns_of(experiment: Experiment, scale: str) -> tuple[str, ...]:
    """What the columns of a table are: scores, or data sets."""
    return experiment.columns or experiment.at(scale).data


def _scores(experiment: Experiment, here: Scale, records: Sequence[Record]) -> dict[str, float]:
    """The columns of one seed."""
    if not experiment.columns:
        return {record["data"]: record["score"] for record in records}
    if len(records) < len(here.data):
        return {}
    return {name: mean(r["scores"][name] for r in records) for name in experiment.columns}
