"""``python -m experiments run | table | report | list``: the paper's tables."""

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

import tyro

from experiments.config import experiment_names, paper_experiments, read_experiment
from experiments.results import Results
from loldu.command import extra, program, run_command
from loldu.errors import LoLDUError

# What takes seconds to import is imported where it is used: --help must be quick.

Names = tyro.conf.Positional[tuple[str, ...]]


@dataclass(frozen=True)
class Run:
    """Make missing results of tables. You can stop it; the same command continues.

    Attributes:
        names: Experiments; all tables of the paper by default. `list` shows their names.
        scale: `full` takes the paper's models and data, `pocket` small ones from the embedded
            world.
        rows: Names of rows; all by default.
        data: Names of datasets; all by default.
        processes: Number of parallel runs; by default one per core, or one with a GPU.
        results: Folder for results instead of experiments/results.
        again: Repeat runs that have a result.
    """

    names: Names = ()
    scale: Literal["pocket", "full"] = "pocket"
    rows: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    processes: int | None = None
    results: Path | None = None
    again: bool = False

    def run(self) -> None:
        """Run the command."""
        if self.processes is not None and self.processes < 1:
            raise LoLDUError(f"--processes must be 1 or more, not {self.processes}.")
        experiments = [read_experiment(name) for name in self.names or paper_experiments()]
        experiments = [e for e in experiments if self.scale in e.scales]
        import_module("datasets")  # of the extra; each run needs it
        import torch

        from experiments.runner import jobs_of, run_missing

        jobs = jobs_of(experiments, self.scale, self.rows, self.data)
        processes = self.processes or (1 if torch.cuda.is_available() else torch.get_num_threads())
        results = Results(self.results)
        if failed := run_missing(jobs, results, processes=processes, again=self.again):
            raise LoLDUError(f"{failed} of {len(jobs)} runs failed; the same command retries them.")
        Table(self.names, self.scale, self.results).run()


@dataclass(frozen=True)
class Table:
    """Print tables: the paper's numbers, the measured ones and the difference.

    Attributes:
        names: Experiments; all tables of the paper by default.
        scale: Scale of the results.
        results: Folder with the results, if not experiments/results.
    """

    names: Names = ()
    scale: Literal["pocket", "full"] = "pocket"
    results: Path | None = None

    def run(self) -> None:
        """Run the command."""
        from experiments.kinds import table_of

        for name in self.names or paper_experiments():
            experiment = read_experiment(name)
            if self.names or self.scale in experiment.scales:
                table = table_of(experiment, self.scale, Results(self.results))
                print(f"{experiment.heading}\n\n{table}\n")  # noqa: T201


@dataclass(frozen=True)
class Report:
    """Draw the figures, and print how the paper's claims hold, run by run.

    Attributes:
        scale: Scale of the results.
        results: Folder with the results, if not experiments/results.
        output: Folder for the figures; existing ones are replaced.
        document: Document whose marked parts are generated anew, such as docs/reproduction.md.
    """

    scale: Literal["pocket", "full"] = "pocket"
    results: Path | None = None
    output: Path = Path("runs/experiments/figures")
    document: Path | None = None

    def run(self) -> None:
        """Run the command."""
        from experiments.claims import claims_table, read_claims
        from experiments.document import fill
        from experiments.figures import draw_figures

        results = Results(self.results)
        print(claims_table(read_claims(), self.scale, results), end="\n\n")  # noqa: T201
        for file in draw_figures(self.scale, results, self.output):
            print(file)  # noqa: T201
        if self.document:
            fill(self.document, results)


@dataclass(frozen=True)
class List:
    """Print the experiments, their rows and datasets."""

    def run(self) -> None:
        """Run the command."""
        for name in experiment_names():
            experiment = read_experiment(name)
            print(f"{name}: {experiment.heading}")  # noqa: T201
            print(f"  rows: {', '.join(row.name for row in experiment.rows)}")  # noqa: T201
            for scale, at in experiment.scales.items():
                seeds = ", ".join(map(str, at.seeds))
                line = f"  {scale}: {at.model} on {', '.join(at.data)}; seeds {seeds}. {at.cost}"
                print(line.rstrip())  # noqa: T201


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; a person's mistake is one line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    commands = (
        Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[Table, tyro.conf.subcommand("table")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[List, tyro.conf.subcommand("list")]
    )
    parse = partial(tyro.cli, commands, prog=program("experiments"), args=argv)  # type: ignore[arg-type]

    def run() -> None:
        command = parse()
        with extra("experiments"):
            command.run()

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
