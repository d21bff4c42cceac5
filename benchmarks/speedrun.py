"""How fast does a method teach a concept? Every entry trains for the fewest steps that suffice.

``python -m benchmarks.speedrun``. `speedrun.toml` has the goals and the entries. An entry teaches
the six concepts of the embedded world, each in a training of 15 steps, then of 25 and so on, until
the means over the concepts reach all goals. Then all entries take steps in turns, and their times
are compared. You can stop the command; the same command continues.
"""

import json
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from functools import partial
from io import StringIO
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from benchmarks.harness import RESULTS, digits, in_turns, ratio, run, show, spread
from benchmarks.harness import Options as Shared
from experiments.config import Run
from experiments.document import replace_parts
from experiments.kinds.by_trainer import teach
from experiments.recipe import Recipe
from experiments.results import Record, Results
from experiments.runner import run_missing
from experiments.table import as_markdown
from loldu.errors import LoLDUError, hint
from loldu.files import read_toml, write_atomically
from loldu.presets import installed_path

NAME = "speedrun"
WORK = Path("runs") / NAME
RULES = Path(__file__).with_name(f"{NAME}.toml")


@dataclass(frozen=True)
class Options(Shared):
    """Train every entry for the fewest steps that reach the goals; time the steps in turns."""

    # Times that the steps of every entry are timed; the result holds medians.
    repetitions: int = 3
    # File with the goals and the entries.
    file: Path = RULES
    # Names of entries; all by default.
    entries: tuple[str, ...] = ()
    # Base model that the entries start from.
    base: str = "./pocket/base"
    # Trainings at a time.
    processes: int = 1
    # Steps that are timed.
    timed_steps: int = 15
    # Document with the marks `begin speedrun` and `end speedrun`, whose table is written anew.
    document: Path | None = None


@dataclass(frozen=True)
class Entry:
    """A way to train a concept.

    Attributes:
        method: Training method.
        preset: Preset of the trainer.
        options: Options of the trainer that differ from the preset's.
        adapter: Options of a method of PEFT, for the method "peft".
    """

    method: str
    preset: str
    options: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Speedrun:
    """The rules.

    Attributes:
        steps: Numbers of steps to try, in rising order.
        concepts: Names of the concepts.
        goals: Least value of each score, as a mean over the concepts.
        options: Options of the trainer for every entry.
        entries: Entries by name.
    """

    steps: tuple[int, ...]
    concepts: tuple[str, ...]
    goals: Mapping[str, float]
    options: Mapping[str, Any]
    entries: Mapping[str, Entry]

    def runs(self, name: str, steps: int, options: Options) -> list[Run]:
        """Return the trainings of an entry with this number of steps: one for each concept."""
        entry = self.entries[name]
        own = {"preset": entry.preset, **self.options, **entry.options}
        own |= {"max_train_steps": steps, "validation_steps": steps}
        if entry.adapter is not None:
            own["adapter_config"] = str(WORK / f"{name}.json")
        return [
            Run(
                experiment=NAME,
                scale="pocket",
                row=f"{name}@{steps}",
                data=concept,
                seed=options.seed,
                model=installed_path(options.base),
                method=entry.method,
                options=own,
                recipe=Recipe(),
            )
            for concept in self.concepts
        ]

    def reached(self, scores: Mapping[str, float]) -> bool:
        """Tell whether scores reach every goal."""
        return all(scores[name] >= least for name, least in self.goals.items())


def read_speedrun(file: Path, only: Iterable[str] = ()) -> Speedrun:
    """Read the goals and the entries.

    Raises:
        LoLDUError: If the file has a mistake, or no entry has a given name.
    """
    values = read_toml(file, "The speedrun")
    try:
        entries = {name: Entry(**own) for name, own in values.pop("entries").items()}
        for name in only:
            if name not in entries:
                raise LoLDUError(f"{file} has no entry {name}; {hint(name, entries)}.")
        chosen = {name: entries[name] for name in only or entries}
        steps, concepts = (tuple(values.pop(key)) for key in ("steps", "concepts"))
        return Speedrun(tuple(sorted(steps)), concepts, entries=chosen, **values)
    except (KeyError, TypeError, AttributeError) as error:
        raise LoLDUError(f"{file} is not complete: {error}.") from error


def climb(speedrun: Speedrun, name: str, options: Options, results: Results) -> dict[str, Any]:
    """Train an entry for more and more steps until it reaches the goals.

    Returns:
        Its number of steps, or None if the largest does not suffice; the mean scores, trained
        numbers and bytes of the last training.

    Raises:
        LoLDUError: If a training fails.
    """
    entry = speedrun.entries[name]
    if entry.adapter is not None:
        write_atomically(WORK / f"{name}.json", json.dumps(entry.adapter))
    for steps in speedrun.steps:
        jobs = [("curves", one) for one in speedrun.runs(name, steps, options)]
        if run_missing(jobs, results, processes=options.processes, again=False):
            raise LoLDUError(f"{name} failed with {steps} steps; the same command tries it again.")
        records: list[Record] = [r for _, one in jobs if (r := results.read(one)) is not None]
        scores = {key: mean(r["scores"][key] for r in records) for key in records[0]["scores"]}
        reached = speedrun.reached(scores)
        if reached or steps == speedrun.steps[-1]:
            return {
                "steps": steps if reached else None,
                "numbers": records[0]["parameters"],
                "bytes": records[0]["facts"]["concept_bytes"],
                "scores": {key: round(value, 3) for key, value in scores.items()},
            }
    raise LoLDUError("The speedrun names no number of steps.")


def seconds_a_step(speedrun: Speedrun, name: str, options: Options) -> float:
    """Train an entry for some steps without scores, and return the trainer's own time a step."""
    one, *_ = speedrun.runs(name, options.timed_steps, options)
    own = {key: value for key, value in one.options.items() if not key.startswith("validation")}
    own |= {"sample_at_end": False, "lora_file": "no"}
    nothing = StringIO()
    with (
        tempfile.TemporaryDirectory() as work,
        redirect_stdout(nothing),
        redirect_stderr(nothing),
    ):
        return teach(one, Path(work) / name, own).train_seconds / options.timed_steps


def measure(options: Options) -> dict[str, Any]:
    """Return the goals, and the result of every entry.

    Raises:
        LoLDUError: If the file has a mistake, or a training fails.
    """
    speedrun = read_speedrun(options.file, options.entries)
    results = Results((options.output or RESULTS / NAME).parent)
    found = {name: climb(speedrun, name, options, results) for name in speedrun.entries}
    calls = {name: partial(seconds_a_step, speedrun, name, options) for name in found}
    in_turns(calls, 1)  # class pictures are drawn once
    times = in_turns(calls, options.repetitions)
    first = next(iter(found))
    for name, own in found.items():
        own["seconds_a_step"] = spread(times[name])
        own["step_times_as_long"] = ratio(times[name], times[first])
        whole = own["seconds_a_step"]["median"] * (own["steps"] or 0)
        own["seconds"] = digits(whole) if own["steps"] else None
    record = {"goals": dict(speedrun.goals), "compared_with": first, "results": found}
    if options.document:
        table = markdown(record)
        write_atomically(
            options.document,
            replace_parts(options.document.read_text(encoding="utf-8"), {NAME: lambda: table}),
        )
    return record


def rows(record: Mapping[str, Any]) -> list[dict[str, object]]:
    """Return the rows of the table: entries that reach the goals, the fastest first."""
    entries = record["results"].items()
    ordered = sorted(entries, key=lambda item: item[1]["seconds"] or float("inf"))
    return [
        {
            "method": name,
            "seconds": f"{own['seconds']:.1f}" if own["seconds"] else "not reached",
            "steps": own["steps"] or "",
            "trained numbers": f"{own['numbers']:,}",
            "KB": f"{own['bytes'] / 1000:,.0f}",
            **{goal: f"{own['scores'][goal]:.2f}" for goal in record["goals"]},
        }
        for name, own in ordered
    ]


def markdown(record: Mapping[str, Any]) -> str:
    """Return the table as Markdown."""
    made = rows(record)
    return as_markdown([*made[0]], [[str(cell) for cell in row.values()] for row in made])


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield the table."""
    goals = ", ".join(f"{name} {least}" for name, least in record["goals"].items())
    yield show(f"speedrun to {goals}", rows(record))


main = partial(run, NAME, Options, measure, tables)

if __name__ == "__main__":
    main()
