"""A table: the paper's numbers, the measured ones, and the difference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev

from experiments.config import Experiment, Row, Scale
from experiments.results import Record, Results

NOT_RUN = "not run"


@dataclass(frozen=True)
class Cell:
    """One number of a table.

    Attributes:
        value: Measured scores as one number; None without results.
        values: Scores by seed.
        seeds: Number of seeds that the experiment asks for.
        paper: The paper's number; None without one.
        decimals: Digits after the point.
    """

    value: float | None
    values: tuple[float, ...]
    seeds: int
    paper: float | None = None
    decimals: int = 2

    @property
    def spread(self) -> float:
        """Standard deviation over seeds."""
        return spread(self.values)

    @property
    def printed(self) -> str:
        """The paper's number as text, or ""."""
        return "" if self.paper is None else f"{self.paper:.{self.decimals}f}"

    def __str__(self) -> str:
        """Return "measured ± spread (paper, difference)"."""
        if self.value is None:
            return f"{NOT_RUN} (paper {self.printed})" if self.printed else NOT_RUN
        form = f".{self.decimals}f"
        text = f"{self.value:{form}}"
        if len(self.values) > 1:
            text += f" ± {self.spread:{form}}"
        if len(self.values) < self.seeds:
            text += f", {len(self.values)} of {self.seeds} seeds"
        if self.paper is not None:
            text += f" (paper {self.printed}, {self.value - self.paper:+{form}})"
        return text


@dataclass(frozen=True)
class MeasuredRow:
    """A row of a table with its results.

    Attributes:
        row: The row.
        cells: Cells by column.
        average: Mean of the columns.
        parameters: Number of trained parameters without the head; None without results.
        share: `parameters` as percent of the base model's; None if the results lack that number.
    """

    row: Row
    cells: dict[str, Cell]
    average: Cell
    parameters: int | None
    share: float | None = None


def measured_rows(experiment: Experiment, scale: str, results: Results) -> list[MeasuredRow]:
    """Return the rows of a table with their results."""
    return [_measured(experiment, row, scale, results) for row in experiment.rows_at(scale)]


def records_of(experiment: Experiment, row: Row, scale: str, results: Results) -> list[Record]:
    """Return all results of a row."""
    found = (results.read(run) for run in experiment.runs(row, scale))
    return [record for record in found if record is not None]


def markdown(experiment: Experiment, scale: str, results: Results) -> str:
    """Return a table as Markdown; without any result it shows the paper's numbers alone."""
    names = columns_of(experiment, scale)
    rows = measured_rows(experiment, scale, results)
    nothing = all(row.parameters is None for row in rows)
    header = ["method", "parameters", *(["share, %"] if experiment.shares else []), *names]
    if len(names) > 1:
        header.append("average")
    body = []
    for row in rows:
        paper = row.row.paper if scale == "full" else {}
        counts = [_count(row.parameters, paper.get("parameters"), ",.0f", nothing)]
        if experiment.shares:
            counts.append(_count(row.share, paper.get("share"), ".3g", nothing))
        cells = [row.cells[name] for name in names] + ([row.average] if len(names) > 1 else [])
        body.append(
            [row.row.label, *counts, *(cell.printed if nothing else str(cell) for cell in cells)]
        )
    if not nothing:
        return as_markdown(header, body)
    has_paper = scale == "full" and any(row.row.paper for row in rows)
    remark = "Not run; the numbers are the paper's." if has_paper else "Not run."
    return f"{remark}\n\n{as_markdown(header, body)}"


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return cells as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def columns_of(experiment: Experiment, scale: str) -> tuple[str, ...]:
    """Return the columns of a table: names of scores, or datasets."""
    return experiment.columns or experiment.at(scale).data


def mean_and_spread(values: Sequence[float]) -> str:
    """Return "mean ± standard deviation", to three digits after the point."""
    return f"{mean(values):.3f} ± {spread(values):.3f}"


def spread(values: Sequence[float]) -> float:
    """Return the standard deviation; 0 for a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def _count(value: float | None, paper: float | None, form: str, nothing: bool) -> str:
    """Return a count as text, with the paper's beside it."""
    if nothing or paper is None:
        return "" if (shown := paper if nothing else value) is None else f"{shown:{form}}"
    return f"{NOT_RUN if value is None else f'{value:{form}}'} (paper {paper:{form}})"


def _measured(experiment: Experiment, row: Row, scale: str, results: Results) -> MeasuredRow:
    here = experiment.at(scale)
    records = records_of(experiment, row, scale, results)
    paper = row.paper if scale == "full" else {}
    summary = median if here.summary == "median" else mean
    by_seed = [
        _scores(experiment, here, [r for r in records if r["seed"] == s]) for s in here.seeds
    ]

    def cell(name: str, seeds: Sequence[Mapping[str, float]], columns: Sequence[str]) -> Cell:
        """Return the mean of columns, each combined over its seeds."""
        value = mean(summary([s[c] for s in seeds]) for c in columns) if seeds else None
        values = tuple(mean(s[c] for c in columns) for s in seeds)
        return Cell(value, values, len(here.seeds), paper.get(name), experiment.decimals)

    names = columns_of(experiment, scale)
    cells = {name: cell(name, [s for s in by_seed if name in s], [name]) for name in names}
    average = cell("average", [s for s in by_seed if len(s) == len(names)], names)
    parameters = max((r["parameters"] for r in records), default=None)
    of_base = max((r.get("facts", {}).get("base_parameters", 0) for r in records), default=0)
    share = 100 * parameters / of_base if parameters is not None and of_base else None
    return MeasuredRow(row, cells, average, parameters, share)


def _scores(experiment: Experiment, here: Scale, records: Sequence[Record]) -> dict[str, float]:
    """Return the columns of one seed."""
    if not experiment.columns:
        return {record["data"]: record["score"] for record in records}
    if len(records) < len(here.data):
        return {}
    return {name: mean(r["scores"][name] for r in records) for name in experiment.columns}
