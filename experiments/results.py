"""The store of results: one JSON-lines file an experiment, one line a run."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.config import FOLDER, Run
from experiments.outcome import Outcome
from loldu.errors import LoLDUError
from loldu.files import write_atomically

SHIPPED = FOLDER / "results"
LIBRARIES = ("torch", "transformers", "diffusers", "peft", "datasets", "accelerate")
Record = dict[str, Any]
Key = tuple[str, str, str, int]
"""Scale, row, dataset, seed."""


@dataclass(frozen=True)
class Results:
    """A folder of results.

    Attributes:
        folder: Folder with `<experiment>.jsonl` files, and pictures in a folder an experiment.
            None is ``experiments/results`` of the checkout.
    """

    folder: Path | None = None

    def file(self, experiment: str) -> Path:
        """Return the file that holds the results of an experiment.

        Raises:
            LoLDUError: If no folder was named and this is not a checkout.
        """
        if self.folder is None and not SHIPPED.is_dir():
            raise LoLDUError(
                f"There are no results in {SHIPPED}: they come with a checkout of the project. "
                "Run the command from a checkout, or name a folder with --results."
            )
        return (self.folder or SHIPPED) / f"{experiment}.jsonl"

    def picture(self, run: Run) -> Path:
        """Return the path of the picture that belongs to a run."""
        return self.file(run.experiment).with_suffix("") / run.place.with_name(
            f"{run.place.name}.png"
        )

    def read(self, run: Run) -> Record | None:
        """Return the result of a run, or None without one.

        Raises:
            LoLDUError: If the file cannot be read, or the result has other settings than the run.
        """
        file = self.file(run.experiment)
        record = _records(file).get(run.key)
        if record is not None and record["settings"] != json.loads(json.dumps(run.settings())):
            raise LoLDUError(
                f"In {file} the result of {run.row} on {run.data}, seed {run.seed}, has other "
                f"settings than the row has now: repeat it with `run {run.experiment} "
                f"--scale {run.scale} --rows {run.row} --again`, or restore the settings."
            )
        return record

    def write(self, run: Run, outcome: Outcome, argv: list[str]) -> None:
        """Write the result of a run, or replace it. Several processes may do so at once."""
        from loldu.provenance import provenance  # imports PyTorch

        record = {
            "experiment": run.experiment,
            "row": run.row,
            "data": run.data,
            "seed": run.seed,
            "scale": run.scale,
            "settings": run.settings(),
            **outcome.as_json(),
            **provenance("experiments", argv, LIBRARIES),
        }
        if outcome.picture:
            write_atomically(self.picture(run), outcome.picture.read_bytes())
        write_records(self.file(run.experiment), [record])


def write_records(file: Path, records: list[Record]) -> None:
    """Add records to a file, or replace those with the same key; the lines stay in key order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with _locked(file.parent):
        kept = {**_records(file), **{_key(record): record for record in records}}
        lines = [json.dumps(kept[key]) + "\n" for key in sorted(kept)]
        write_atomically(file, "".join(lines))


def _records(file: Path) -> dict[Key, Record]:
    """Return the records of a file by key; empty without a file."""
    try:
        facts = file.stat()
        return _parsed(file, facts.st_mtime_ns, facts.st_ino)
    except FileNotFoundError:
        return {}


@lru_cache(maxsize=32)
def _parsed(file: Path, _changed_ns: int, _inode: int) -> dict[Key, Record]:
    """Parse a file once for each of its versions."""
    records = {}
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
        try:
            record = json.loads(line)
            records[_key(record)] = record
        except (ValueError, KeyError, TypeError) as error:
            raise LoLDUError(
                f"Line {number} of {file} is not a result ({error}): remove the line."
            ) from error
    return records


def _key(record: Record) -> Key:
    return record["scale"], record["row"], record["data"], record["seed"]


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, so that processes write one after the other."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
