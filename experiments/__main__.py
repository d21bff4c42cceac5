"""``python -m experiments run | table | report | list``: the paper's tables, config to number."""

import logging
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from experiments.claims import claims_table, read_claims
from experiments.config import experiment_names, read_experiment
from experiments.document import fill
from experiments.results import Results
from experiments.runner import jobs_of, run_missing
from experiments.table import markdown
from loldu.command import run_command
from loldu.errors import LoLDUError

Name = tyro.conf.Positional[tuple[str, ...]]


@dataclass(frozen=True)
class Run:
    """Make the results of tables that are not there yet; stop and start it as you like.

    Attributes:
        names: Experiments (all by default); `list` shows them.
        scale: The paper's own models and data, or small ones from the embedded world with the same
            code.
        rows: Only these rows.
        data: Only these data sets.
        processes: Runs at a time; by default one a core, or one where there is a GPU.
        results: Keep results under this folder instead of with the experiments.
        again: Make results anew that are there.
    """

    names: Name = ()
    scale: Literal["pocket", "full"] = "pocket"
    rows: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    processes: int | None = None
    results: Path | None = None
    again: bool = False

    def run(self) -> None:
        """Run the command.

        Raises:
            SystemExit: With 1, if a run failed.
        """
        if self.processes is not None and self.processes < 1:
            raise LoLDUError(f"--processes must be 1 or more, not {self.processes}.")
        experiments = [read_experiment(name) for name in self.names or experiment_names()]
        experiments = [e for e in experiments if self.scale in e.scales]
        jobs = jobs_of(experiments, self.scale, self.rows, self.data)
        processes = self.processes or (1 if torch.cuda.is_available() else torch.get_num_threads())
        if failed := run_missing(
            jobs, Results(self.results), processes=processes, again=self.again
        ):
            sys.exit(f"{failed} of {len(jobs)} runs failed; the same command tries them again.")
        Table(self.names, self.scale, self.results).run()


@dataclass(frozen=True)
class Table:
    """Print tables: the paper's numbers, the measured ones and the difference.

    Attributes:
        names: Experiments (all by default).
        scale: Which results.
        results: The folder they were kept under, if not with the experiments.
    """

    names: Name = ()
    scale: Literal["pocket", "full"] = "pocket"
    results: Path | None = None

    def run(self) -> None:
        """Run the command."""
        for name in self.names or experiment_names():
            experiment = read_experiment(name)
            if self.names or self.scale in experiment.scales:
                table = markdown(experiment, self.scale, Results(self.results))
                print(f"{experiment.title} ({experiment.source})\n\n{table}\n")  # noqa: T201


@dataclass(frozen=True)
class Report:
    """Draw the figures, and print what pairs of rows say about the paper's claims.

    Attributes:
        scale: Which results.
        results: The folder they were kept under, if not with the experiments.
        output: Folder for the figures; those that are there are drawn over.
        document: Make the marked parts of this document anew, docs/reproduction.md.
    """

    scale: Literal["pocket", "full"] = "pocket"
    results: Path | None = None
    output: Path = Path("runs/experiments/figures")
    document: Path | None = None

    def run(self) -> None:
        """Run the command."""
        from experiments.figures import draw_figures  # takes a second to import

        results = Results(self.results)
        print(claims_table(read_claims(), self.scale, results), end="\n\n")  # noqa: T201
        for file in draw_figures(self.scale, results, self.output):
            print(file)  # noqa: T201
        if self.document:
            fill(self.document, results)


@dataclass(frozen=True)
class List:
    """Print the experiments, their rows and data."""

    def run(self) -> None:
        """Run the command."""
        for name in experiment_names():
            experiment = read_experiment(name)
            print(f"{name}: {experiment.title} ({experiment.source})")  # noqa: T201
            print(f"  rows: {', '.join(row.name for row in experiment.rows)}")  # noqa: T201
            for scale, at in experiment.scales.items():
                seeds = ", ".join(map(str, at.seeds))
                line = f"  {scale}: {at.model} on {', '.join(at.data)}; seeds {seeds}. {at.cost}"
                print(line.rstrip())  # noqa: T201


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    commands = (
        Annotated[Run, tyro.conf.subcommand("run")]
        | Annotated[Table, tyro.conf.subcommand("table")]
        | Annotated[Report, tyro.conf.subcommand("report")]
        | Annotated[List, tyro.conf.subcommand("list")]
    )
    parse = partial(tyro.cli, commands, prog="python -m experiments")  # type: ignore[arg-type]
    if status := run_command(lambda: parse().run()):
        sys.exit(status)


if __name__ == "__main__":
    main()
