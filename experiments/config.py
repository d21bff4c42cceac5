"""The tables of the paper as data: one TOML file a table, and the runs that it asks for.

``experiments/tables/<name>.toml`` names the models and datasets of a table at each scale, the
options that its rows share, and every row. Later sources win over earlier ones: the scale, its
``per_data`` entry for a dataset, the row, the row's entry for the dataset, then the same two of the
row at this scale.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from experiments.recipe import Recipe
from loldu.errors import LoLDUError, hint
from loldu.files import read_toml
from loldu.presets import installed_path

FOLDER = Path(__file__).parent
TABLES = FOLDER / "tables"
SCALES = ("pocket", "full")
Values = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One training and its evaluation; it becomes one line of results.

    Attributes:
        experiment: Name of the table.
        scale: "pocket" or "full".
        row: Name of the row.
        data: Dataset, an entry of the manifests in `datasets/`.
        seed: Seed of everything random.
        model: Hub name or folder of the base model.
        method: Training method, a name in `experiments.methods`.
        options: Options of the method.
        recipe: Options of the training.
    """

    experiment: str
    scale: str
    row: str
    data: str
    seed: int
    model: str
    method: str
    options: Mapping[str, Any]
    recipe: Recipe

    @property
    def name(self) -> str:
        """Description for log lines."""
        return f"{self.experiment}: {self.row} on {self.data}, seed {self.seed}"

    @property
    def key(self) -> tuple[str, str, str, int]:
        """Scale, row, dataset and seed: they identify a result within its experiment."""
        return self.scale, self.row, self.data, self.seed

    @property
    def place(self) -> Path:
        """Relative path for files that belong to this run alone."""
        return Path(self.scale) / self.row / f"{self.data}-{self.seed}"

    def settings(self) -> Values:
        """Return everything that decides the result, ready for JSON."""
        return {
            "model": self.model,
            "method": self.method,
            "options": dict(self.options),
            "recipe": self.recipe.given(),
        }


@dataclass(frozen=True)
class Choice:
    """A point that the paper leaves open or contradicts, the decision, and the alternative."""

    subject: str
    made: str
    alternative: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """Options of all rows or of one row, for all scales or for one.

    Attributes:
        options: Options of the method.
        recipe: Options of the training.
        per_data: Options of the training on one dataset.
    """

    options: Values = field(default_factory=dict)
    recipe: Values = field(default_factory=dict)
    per_data: dict[str, Values] = field(default_factory=dict)


_PARTS = [f.name for f in fields(Part)]


@dataclass(frozen=True, kw_only=True)
class Scale(Part):
    """An experiment at one size, with the options that all rows share.

    Attributes:
        model: Hub name or folder of the base model.
        data: Datasets, entries of the manifests: the columns of the table.
        seeds: Seeds of the runs.
        summary: How a cell combines its seeds: "median" or "mean".
        cost: Time and memory of a run and on which machine, measured or estimated.
    """

    model: str
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    summary: str = "mean"
    cost: str = ""


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: Key under `[rows]` in the file.
        label: Name in the printed table.
        method: A name in `experiments.methods`; empty with `same_as`.
        same_as: "experiment/row" whose runs this row shows.
        scales: Scales at which the row exists.
        seeds: Seeds of this row; empty for those of the scale.
        variant: Difference from the row of the same method and rank, for a curve of its own.
        color: Color of its curve in figures.
        note: Remark below the table.
        paper: The paper's numbers by dataset, and for "parameters", "share" and "average".
        common: Options at every scale.
        at: Options at one scale.
    """

    name: str
    label: str
    method: str = ""
    same_as: str = ""
    scales: tuple[str, ...] = SCALES
    seeds: tuple[int, ...] = ()
    variant: str = ""
    color: str = ""
    note: str = ""
    paper: dict[str, float] = field(default_factory=dict)
    common: Part = field(default_factory=Part)
    at: dict[str, Part] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A table of the paper, or of this project.

    Attributes:
        name: Name of its file.
        title: One line about it.
        kind: A name in `experiments.kinds`.
        metric: Meaning and unit of the numbers.
        rows: Rows in the order of the table.
        scales: Scales by name.
        source: Tables and figures of the paper; empty for the project's own.
        about: What is trained and measured.
        choices: Decisions where the paper is open.
        columns: Score names, if the columns are scores and not datasets.
        decimals: Digits after the point.
        shares: Whether to show parameters as percent of the base model's, too.
        compare_with: Row that the others are compared with, run by run.
    """

    name: str
    title: str
    kind: str
    metric: str
    rows: tuple[Row, ...]
    scales: dict[str, Scale]
    source: str = ""
    about: str = ""
    choices: tuple[Choice, ...] = ()
    columns: tuple[str, ...] = ()
    decimals: int = 2
    shares: bool = False
    compare_with: str = ""

    @property
    def heading(self) -> str:
        """Title, with its place in the paper."""
        return f"{self.title} ({self.source})" if self.source else self.title

    def at(self, scale: str) -> Scale:
        """Return the experiment at one scale.

        Raises:
            LoLDUError: If it does not exist at this scale.
        """
        if scale not in self.scales:
            raise LoLDUError(
                f"The experiment {self.name} has no scale {scale}: it has {', '.join(self.scales)}."
            )
        return self.scales[scale]

    def rows_at(self, scale: str) -> list[Row]:
        """Return the rows that exist at one scale."""
        return [row for row in self.rows if scale in row.scales]

    def row(self, name: str) -> Row:
        """Return a row by its name.

        Raises:
            LoLDUError: If there is no such row.
        """
        return _known(name, {row.name: row for row in self.rows}, f"The experiment {self.name}")

    def runs(self, row: Row, scale: str, data: Iterable[str] | None = None) -> Iterator[Run]:
        """Yield the runs of a row at one scale: every dataset with every seed.

        The runs of a row with `same_as` belong to the experiment that it names.
        """
        here = self.at(scale)
        owner, owned = self.owner_of(row)
        there = owner.at(scale)
        common, special = owned.common, owned.at.get(scale, Part())
        for name in data or here.data:
            recipe: Values = {}
            for part in (there, common, special):
                recipe |= part.recipe | part.per_data.get(name, {})
            for seed in owned.seeds or here.seeds:
                yield Run(
                    experiment=owner.name,
                    scale=scale,
                    row=owned.name,
                    data=name,
                    seed=seed,
                    model=installed_path(there.model),
                    method=owned.method,
                    options=there.options | common.options | special.options,
                    recipe=Recipe.read(recipe, f"{owner.name}.toml, row {owned.name}"),
                )

    def owner_of(self, row: Row) -> tuple["Experiment", Row]:
        """Return the experiment and row that keep the results of a row."""
        if not row.same_as:
            return self, row
        experiment, _, name = row.same_as.partition("/")
        other = read_experiment(experiment)
        return other.owner_of(other.row(name))


def experiment_names() -> list[str]:
    """Return the names of all experiments."""
    return sorted(file.stem for file in TABLES.glob("*.toml"))


def paper_experiments() -> list[str]:
    """Return the names of the experiments that are tables of the paper."""
    return [name for name in experiment_names() if read_experiment(name).source]


@cache
def read_experiment(name: str) -> Experiment:
    """Read an experiment by its name.

    Raises:
        LoLDUError: If there is no such experiment, or its file has a mistake.
    """
    known = {n: TABLES / f"{n}.toml" for n in experiment_names()}
    file = _known(name, known, "The project", "experiment")
    table = read_toml(file, "The experiment")
    rows = tuple(_row(n, part, file) for n, part in table.pop("rows", {}).items())
    scales = {s: _read(Scale, table.pop(s), file, s) for s in SCALES if s in table}
    choices = tuple(_read(Choice, c, file, "choices") for c in table.pop("choices", []))
    rest = {"name": name, "rows": rows, "scales": scales, "choices": choices}
    experiment = _read(Experiment, table | rest, file, "")
    _check_names(experiment, file)
    return experiment


def _check_names(experiment: Experiment, file: Path) -> None:
    """Check that all datasets and scales that the file mentions exist."""
    every: dict[str, None] = {}
    for scale, here in experiment.scales.items():
        _known(here.summary, dict.fromkeys(("mean", "median")), f"{file} in [{scale}]", "summary")
        data = dict.fromkeys(here.data)
        every |= data
        parts: dict[str, Part] = {scale: here}
        parts |= {f"rows.{r.name}.{scale}": r.at[scale] for r in experiment.rows if scale in r.at}
        for where, part in parts.items():
            for name in part.per_data:
                _known(name, data, f"{file} in [{where}.per_data]", "dataset")
    for row in experiment.rows:
        where = f"{file} in [rows.{row.name}]"
        for scale in row.scales:
            _known(scale, dict.fromkeys(SCALES), where, "scale")
        for name in row.common.per_data:
            _known(name, every, where, "dataset")


def _row(name: str, table: Values, file: Path) -> Row:
    part = f"rows.{name}"
    at = {s: _read(Part, table.pop(s), file, f"{part}.{s}") for s in SCALES if s in table}
    common = _read(Part, {p: table.pop(p) for p in _PARTS if p in table}, file, part)
    row = _read(Row, table | {"name": name, "common": common, "at": at}, file, part)
    if bool(row.method) == bool(row.same_as):
        raise LoLDUError(f"{file}: the row {name} needs either a method or same_as.")
    return row


def _read(kind: type[T], table: Values, file: Path, part: str) -> T:
    """Return a TOML table as a dataclass; lists become tuples."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    where = f" in [{part}]" if part else ""
    for key in table:
        if key not in known:
            perhaps = hint(key, [*known, *_PARTS, *SCALES], f"it takes {', '.join(known)}")
            raise LoLDUError(f"{file} has the unknown key {key}{where}; {perhaps}.")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()})
    except TypeError as error:
        raise LoLDUError(f"{file} is not complete{where}: {error}.") from error


def _known(name: str, choices: Mapping[str, T], whose: str, what: str = "row") -> T:
    if name in choices:
        return choices[name]
    raise LoLDUError(f"{whose} has no {what} {name}; {hint(name, choices)}.")


def check_method(name: str, known: Collection[str]) -> None:
    """Check that a method is known.

    Raises:
        LoLDUError: If it is unknown.
    """
    if name not in known:
        perhaps = hint(name, known)
        raise LoLDUError(f"There is no method {name}; {perhaps}.")
