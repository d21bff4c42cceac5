"""``python -m experiments run | table | report | list``: the paper's tables."""

import logging
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal

import tyro

from experiments.config import experiment_names, paper_experiments, read_experiment
from experiments.results import Results
from loldu.command import extra, program, run_command
from loldu.errors import LoLDUError

# What takes seconds to import is imported where it is used: --help must be quick.

Names = tyro.conf.Positional[tuple[str, ...]]
Scale = Literal["pocket", "full"]


def run_rows(
    names: Names = (),
    scale: Scale = "pocket",
    rows: tuple[str, ...] = (),
    data: tuple[str, ...] = (),
    processes: int | None = None,
    results: Path | None = None,
    again: bool = False,
) -> None:
    """Make missing results of tables. You can stop it; the same command continues.

    Args:
        names: Experiments; all tables of the paper by default. `list` shows their names.
        scale: `full` takes the paper's models and data, `pocket` small ones from the embedded
            world.
        rows: Names of rows; all by default.
        data: Names of datasets; all by default.
        processes: Number of parallel runs; by default one per core, or one with a GPU.
        results: Folder for results instead of experiments/results.
        again: Repeat runs that have a result.
    """
    if processes is not None and processes < 1:
        raise LoLDUError(f"--processes must be 1 or more, not {processes}.")
    experiments = [read_experiment(name) for name in names or paper_experiments()]
    experiments = [e for e in experiments if scale in e.scales]
    import_module("datasets")  # of the extra; each run needs it
    import torch

    from experiments.runner import jobs_of, run_missing

    jobs = jobs_of(experiments, scale, rows, data)
    processes = processes or (1 if torch.cuda.is_available() else torch.get_num_threads())
    if failed := run_missing(jobs, Results(results), processes=processes, again=again):
        raise LoLDUError(f"{failed} of {len(jobs)} runs failed; the same command retries them.")
    print_tables(names, scale, results)


def print_tables(names: Names = (), scale: Scale = "pocket", results: Path | None = None) -> None:
    """Print tables: the paper's numbers, the measured ones and the difference.

    Args:
        names: Experiments; all tables of the paper by default.
        scale: Scale of the results.
        results: Folder with the results, if not experiments/results.
    """
    from experiments.kinds import table_of

    for name in names or paper_experiments():
        experiment = read_experiment(name)
        if names or scale in experiment.scales:
            table = table_of(experiment, scale, Results(results))
            print(f"{experiment.heading}\n\n{table}\n")  # noqa: T201


def report(
    scale: Scale = "pocket",
    results: Path | None = None,
    output: Path = Path("runs/experiments/figures"),
    document: Path | None = None,
) -> None:
    """Draw the figures, and print how the paper's claims hold, run by run.

    Args:
        scale: Scale of the results.
        results: Folder with the results, if not experiments/results.
        output: Folder for the figures; existing ones are replaced.
        document: Document whose marked parts are generated anew, such as docs/reproduction.md.
    """
    from experiments.claims import claims_table, read_claims
    from experiments.document import fill
    from experiments.figures import draw_figures

    store = Results(results)
    print(claims_table(read_claims(), scale, store), end="\n\n")  # noqa: T201
    for file in draw_figures(scale, store, output):
        print(file)  # noqa: T201
    if document:
        fill(document, store)


def list_experiments() -> None:
    """Print the experiments, their rows and datasets."""
    for name in experiment_names():
        experiment = read_experiment(name)
        print(f"{name}: {experiment.heading}")  # noqa: T201
        print(f"  rows: {', '.join(row.name for row in experiment.rows)}")  # noqa: T201
        for scale, at in experiment.scales.items():
            seeds = ", ".join(map(str, at.seeds))
            line = f"  {scale}: {at.model} on {', '.join(at.data)}; seeds {seeds}. {at.cost}"
            print(line.rstrip())  # noqa: T201


COMMANDS = {
    "run": run_rows,
    "table": print_tables,
    "report": report,
    "list": list_experiments,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; a person's mistake is one line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parse = tyro.extras.subcommand_cli_from_dict

    def run() -> None:
        with extra("experiments"):
            parse(COMMANDS, prog=program("experiments"), args=argv)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
