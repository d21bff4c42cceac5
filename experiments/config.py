"""The experiments as data: a TOML file per table and per row, and the runs they ask for.

``experiments/<name>/experiment.toml`` says what a table of the paper is about, and on which models
and data it is made; ``experiments/<name>/rows/<row>.toml`` says what one row of it trains. A value
is looked up from the general to the particular: experiment, its data set, row, the row's data set.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from experiments.recipe import Recipe
from loldu.errors import LoLDUError, hint
from loldu.files import read_toml

FOLDER = Path(__file__).parent
SCALES = ("pocket", "full")
Table = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One training and its evaluation: one result file.

    Attributes:
        experiment: The table it belongs to.
        scale: "pocket" or "full".
        row: The row of the table.
        data: Name of a manifest entry of `datasets/`.
        seed: Of everything random.
        model: Hub name or folder of the base.
        method: What is trained, a name of `experiments.methods`.
        options: Of the method.
        recipe: How it is trained.
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
        """How people are told of it."""
        return f"{self.experiment}: {self.row} on {self.data}, seed {self.seed}"

    @property
    def place(self) -> Path:
        """Where its result lies under the folder of results of its experiment."""
        return Path(self.scale) / self.row / f"{self.data}-{self.seed}.json"

    def settings(self) -> Table:
        """What decides the result, as JSON has it."""
        return {
            "model": self.model,
            "method": self.method,
            "options": dict(self.options),
            "recipe": self.recipe.given(),
        }


@dataclass(frozen=True)
class Choice:
    """Something that the paper leaves open or contradicts itself in, and how it was settled."""

    subject: str
    made: str
    alternative: str


@dataclass(frozen=True)
class Scale:
    """An experiment at one size.

    Attributes:
        model: Hub name or folder of the base.
        data: Names of manifest entries: the columns of the table.
        seeds: Of the runs.
        summary: How the seeds of a cell become one number: "median" or "mean".
        options: What all rows share, of the method.
        recipe: What all rows share, of the training.
        per_data: What they share on one data set.
        cost: What to expect of a run: time, memory, on which machine, measured or estimated.
    """

    model: str
    data: tuple[str, ...]
    seeds: tuple[int, ...]
    summary: str = "mean"
    options: Table = field(default_factory=dict)
    recipe: Table = field(default_factory=dict)
    per_data: dict[str, Table] = field(default_factory=dict)
    cost: str = ""


@dataclass(frozen=True)
class RowPart:
    """What a row trains: in general, or at one scale."""

    options: Table = field(default_factory=dict)
    recipe: Table = field(default_factory=dict)
    per_data: dict[str, Table] = field(default_factory=dict)


_PARTS = [f.name for f in fields(RowPart)]


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        name: Its file's name.
        label: What the table calls it.
        method: A name of `experiments.methods`; none where `same_as` says whose results these are.
        same_as: "experiment/row" with the very same runs.
        scales: The sizes at which it exists.
        variant: What sets it apart from the row of the same method and rank: a curve of its own.
        note: What must be known about it.
        paper: The paper's numbers by data set, and of "parameters", "share" and
            "average".
        common: What is trained at any scale.
        at: What is different at a scale.
    """

    name: str
    label: str
    method: str = ""
    same_as: str = ""
    scales: tuple[str, ...] = SCALES
    variant: str = ""
    note: str = ""
    paper: dict[str, float] = field(default_factory=dict)
    common: RowPart = field(default_factory=RowPart)
    at: dict[str, RowPart] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A table of the paper.

    Attributes:
        name: Its folder's name.
        title: A line about it.
        source: Tables and figures of the paper.
        kind: A name of `experiments.kinds`.
        metric: What the numbers are.
        rows: In the order of the table.
        scales: By name.
        about: What is trained and measured, and how.
        choices: What had to be settled.
        columns: Names of scores, where the table's columns are those and not data sets.
        decimals: Digits after the point that the table shows.
        shares: Whether it shows parameters in percent of the base's, too.
    """

    name: str
    title: str
    source: str
    kind: str
    metric: str
    rows: tuple[Row, ...]
    scales: dict[str, Scale]
    about: str = ""
    choices: tuple[Choice, ...] = ()
    columns: tuple[str, ...] = ()
    decimals: int = 2
    shares: bool = False

    def at(self, scale: str) -> Scale:
        """The experiment at one size.

        Raises:
            LoLDUError: It does not exist at this size.
        """
        if scale not in self.scales:
            raise LoLDUError(
                f"The experiment {self.name} has no scale {scale}: it has {', '.join(self.scales)}."
            )
        return self.scales[scale]

    def rows_at(self, scale: str) -> list[Row]:
        """The rows that exist at one size."""
        return [row for row in self.rows if scale in row.scales]

    def row(self, name: str) -> Row:
        """A row by its name.

        Raises:
            LoLDUError: There is none.
        """
        return _known(name, {row.name: row for row in self.rows}, f"The experiment {self.name}")

    def runs(self, row: Row, scale: str, data: Iterable[str] | None = None) -> Iterator[Run]:
        """What a row takes at one size: every data set by every seed, of the row's true owner."""
        here = self.at(scale)
        owner, owned = self.owner_of(row)
        there = owner.at(scale)
        for name in data or here.data:
            common, special = owned.common, owned.at.get(scale, RowPart())
            recipe = there.recipe | there.per_data.get(name, {})
            recipe |= common.recipe | common.per_data.get(name, {})
            recipe |= special.recipe | special.per_data.get(name, {})
            where = f"{owner.name}/rows/{owned.name}.toml"
            for seed in here.seeds:
                yield Run(
                    experiment=owner.name,
                    scale=scale,
                    row=owned.name,
                    data=name,
                    seed=seed,
                    model=there.model,
                    method=owned.method,
                    options=there.options | common.options | special.options,
                    recipe=Recipe.read(recipe, where),
                )

    def owner_of(self, row: Row) -> tuple["Experiment", Row]:
        """The experiment and row under which results are kept."""
        if not row.same_as:
            return self, row
        experiment, _, name = row.same_as.partition("/")
        other = read_experiment(experiment)
        return other.owner_of(other.row(name))


def experiment_names() -> list[str]:
    """The experiments there are."""
    return sorted(file.parent.name for file in FOLDER.glob("*/experiment.toml"))


@cache
def read_experiment(name: str) -> Experiment:
    """An experiment by its name.

    Raises:
        LoLDUError: There is none, or a file of it is wrong.
    """
    known = {n: FOLDER / n for n in experiment_names()}
    folder = _known(name, known, "The project", "experiment")
    file = folder / "experiment.toml"
    table = read_toml(file, "The experiment")
    names = table.pop("rows", [])
    scales = {s: _read(Scale, table.pop(s), file, s) for s in SCALES if s in table}
    choices = tuple(_read(Choice, c, file, "choices") for c in table.pop("choices", []))
    rows = tuple(_read_row(folder / "rows" / f"{n}.toml") for n in names)
    rest = {"name": name, "rows": rows, "scales": scales, "choices": choices}
    experiment = _read(Experiment, table | rest, file, "")
    _check_names(experiment, file)
    return experiment


def _check_names(experiment: Experiment, file: Path) -> None:
    """Make sure that what is said of a data set or a scale is said of one that there is."""
    for scale, here in experiment.scales.items():
        _known(here.summary, dict.fromkeys(("mean", "median")), f"{file} in [{scale}]", "summary")
        data = dict.fromkeys(here.data)
        for name in here.per_data:
            _known(name, data, f"{file} in [{scale}.per_data]", "data set")
        for row in experiment.rows:
            where = f"{file.parent / 'rows' / row.name}.toml"
            for name in row.at.get(scale, RowPart()).per_data:
                _known(name, data, f"{where} in [{scale}.per_data]", "data set")
    every = dict.fromkeys(name for here in experiment.scales.values() for name in here.data)
    for row in experiment.rows:
        where = f"{file.parent / 'rows' / row.name}.toml"
        for scale in row.scales:
            _known(scale, dict.fromkeys(SCALES), where, "scale")
        for name in row.common.per_data:
            _known(name, every, f"{where} in [per_data]", "data set")


def _read_row(file: Path) -> Row:
    table = read_toml(file, "The row")
    at = {s: _read(RowPart, table.pop(s), file, s) for s in SCALES if s in table}
    parts = {name: table.pop(name) for name in _PARTS if name in table}
    common = _read(RowPart, parts, file, "")
    row = _read(Row, table | {"name": file.stem, "common": common, "at": at}, file, "")
    if bool(row.method) == bool(row.same_as):
        raise LoLDUError(f"The row {file} needs a method or same_as, one of the two.")
    return row


def _read(kind: type[T], table: Table, file: Path, part: str) -> T:
    """A TOML table as a dataclass; lists become tuples."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            perhaps = hint(key, [*known, *_PARTS, *SCALES], f"it takes {', '.join(known)}")
            where = f" in [{part}]" if part else ""
            raise LoLDUError(f"{file} has the unknown key {key}{where}; {perhaps}.")
    try:
        return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in table.items()})
    except TypeError as error:
        raise LoLDUError(f"{file} is not complete: {error}.") from error


def _known(name: str, choices: Mapping[str, T], whose: str, what: str = "row") -> T:
    if name in choices:
        return choices[name]
    perhaps = hint(name, choices)
    raise LoLDUError(f"{whose} has no {what} {name}; {perhaps}.")
