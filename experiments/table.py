"""A table of the paper with what was measured: the paper's number, ours and the difference."""

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
        value: The measured scores as one number; None where nothing was run.
        values: The scores, one a seed that was run.
        seeds: How many there should be.
        paper: The paper's number, if it has one.
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
        return stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def told(self) -> str:
        """The paper's number."""
        return "" if self.paper is None else f"{self.paper:.{self.decimals}f}"

    def __str__(self) -> str:
        """As a table shows it: measured ± spread over seeds, the paper's, the difference."""
        if self.value is None:
            return f"{NOT_RUN} (paper {self.told})" if self.told else NOT_RUN
        form = f".{self.decimals}f"
        text = f"{self.value:{form}}"
        if len(self.values) > 1:
            text += f" ± {self.spread:{form}}"
        if len(self.values) < self.seeds:
            text += f", {len(self.values)} of {self.seeds} seeds"
        if self.paper is not None:
            text += f" (paper {self.told}, {self.value - self.paper:+{form}})"
        return text


@dataclass(frozen=True)
class Line:
    """One row of a table.

    Attributes:
        row: What was trained.
        cells: By column.
        average: Of the columns.
        parameters: That were trained, without the head; None where nothing was run.
        share: Those in percent of the base's, where the results tell how many it has.
    """

    row: Row
    cells: dict[str, Cell]
    average: Cell
    parameters: int | None
    share: float | None = None


def lines_of(experiment: Experiment, scale: str, results: Results) -> list[Line]:
    """The rows of a table with what was measured."""
    return [_line(experiment, row, scale, results) for row in experiment.rows_at(scale)]


def records_of(experiment: Experiment, row: Row, scale: str, results: Results) -> list[Record]:
    """All results of a row."""
    found = (results.read(run) for run in experiment.runs(row, scale))
    return [record for record in found if record is not None]


def markdown(experiment: Experiment, scale: str, results: Results) -> str:
    """A table as Markdown; one of which nothing was run has the paper's numbers alone."""
    names = columns_of(experiment, scale)
    lines = lines_of(experiment, scale, results)
    nothing = all(line.parameters is None for line in lines)
    header = ["method", "parameters", *(["share, %"] if experiment.shares else []), *names]
    if len(names) > 1:
        header.append("average")
    body = []
    for line in lines:
        paper = line.row.paper if scale == "full" else {}
        counts = [_counted(line.parameters, paper.get("parameters"), ",.0f", nothing)]
        if experiment.shares:
            counts.append(_counted(line.share, paper.get("share"), ".3g", nothing))
        cells = [line.cells[name] for name in names] + ([line.average] if len(names) > 1 else [])
        body.append(
            [line.row.label, *counts, *(cell.told if nothing else str(cell) for cell in cells)]
        )
    if not nothing:
        return as_markdown(header, body)
    has_paper = scale == "full" and any(line.row.paper for line in lines)
    told = "Not run; the numbers are the paper's." if has_paper else "Not run."
    return f"{told}\n\n{as_markdown(header, body)}"


def _counted(value: float | None, paper: float | None, form: str, nothing: bool) -> str:
    """A count as a table shows it, the paper's beside it."""
    if nothing or paper is None:
        return "" if (shown := paper if nothing else value) is None else f"{shown:{form}}"
    return f"{NOT_RUN if value is None else f'{value:{form}}'} (paper {paper:{form}})"


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    escaped = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in escaped)


def _line(experiment: Experiment, row: Row, scale: str, results: Results) -> Line:
    here = experiment.at(scale)
    records = records_of(experiment, row, scale, results)
    paper = row.paper if scale == "full" else {}
    summary = median if here.summary == "median" else mean
    by_seed = [
        _scores(experiment, here, [r for r in records if r["seed"] == s]) for s in here.seeds
    ]

    def cell(name: str, seeds: Sequence[Mapping[str, float]], columns: Sequence[str]) -> Cell:
        """The mean of columns, each over its seeds."""
        value = mean(summary([s[c] for s in seeds]) for c in columns) if seeds else None
        values = tuple(mean(s[c] for c in columns) for s in seeds)
        return Cell(value, values, len(here.seeds), paper.get(name), experiment.decimals)

    names = columns_of(experiment, scale)
    cells = {name: cell(name, [s for s in by_seed if name in s], [name]) for name in names}
    average = cell("average", [s for s in by_seed if len(s) == len(names)], names)
    parameters = max((r["parameters"] for r in records), default=None)
    of_base = max((r.get("facts", {}).get("base_parameters", 0) for r in records), default=0)
    share = 100 * parameters / of_base if parameters is not None and of_base else None
    return Line(row, cells, average, parameters, share)


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
