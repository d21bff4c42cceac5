"""The library: concepts of the studio, and concepts of runs of the command line.

A concept of the studio has a folder with the files of its training and an `entry.json`, which
alone decides whether it is listed or in the trash. Every change is one rename of a file or folder,
so a server may be killed at any time.
"""

import fcntl
import json
import logging
import os
import secrets
import shutil
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tomli_w

from loldu import read_concept
from loldu.base.record import CONFIG
from loldu.errors import LoLDUError
from loldu.files import DRAFTS, drafted, remove, write_atomically
from loldu.options import options, typed_values
from webui.engine.job import Job, Kind, Status, shown
from webui.engine.jobs import Jobs
from webui.engine.progress import checkpoints
from webui.library.about import about
from webui.library.entry import (
    CONCEPT,
    Entry,
    base_without_paths,
    named_errors,
    take,
    take_validation,
)
from webui.library.imported import name_of, unpack

logger = logging.getLogger("webui")

ENTRY, _LOCK = "entry.json", ".lock"
_REMOVED_FOR_S = 30 * 24 * 3600
_MOST_STEPS = 2**31


@dataclass(frozen=True)
class Record:
    """Content of `entry.json`."""

    name: str
    owner: str
    created: float
    job: str | None = None
    step: int | None = None
    removed: float | None = None


class Library:
    """The concepts of all owners; several processes may open the same folder."""

    def __init__(
        self,
        folder: Path,
        runs: Path,
        jobs: Jobs,
        *,
        max_entries: int = 200,
        max_bytes: int = 2**30,
    ) -> None:
        """Open or make the folder, and delete concepts that were in the trash for 30 days.

        Args:
            folder: Folder of the concepts.
            runs: Folder of runs of the command line.
            jobs: Jobs whose results become concepts.
            max_entries: Limit of concepts per owner.
            max_bytes: Limit of their total size per owner.
        """
        self._folder = folder.absolute()
        self._runs = runs
        self._jobs = jobs
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            for draft in self._folder.glob(DRAFTS):  # of a killed server
                remove(draft)
            for entry_id, record in self._records().items():
                if record.removed and record.removed < time.time() - _REMOVED_FOR_S:
                    self._empty(entry_id)

    # ------------------------------------------------------------------------------ reading

    def list(self, owner: str) -> tuple[Entry, ...]:
        """Return the concepts that an owner may use, newest first."""
        self._collect(owner)
        entries = {entry.id: entry for entry in self._of_runs()}
        for entry_id, record in self._records().items():
            if record.owner == owner and not record.removed:
                entries[entry_id] = self._entry(entry_id, record)
        return tuple(sorted(entries.values(), key=lambda entry: entry.created, reverse=True))

    def get(self, entry_id: str | None, owner: str) -> Entry:
        """Return a concept that an owner may use.

        Raises:
            LoLDUError: If there is none of that id, or it belongs to somebody else.
        """
        for entry in self.list(owner):
            if entry.id == entry_id:
                return entry
        raise LoLDUError("There is no such concept; reload the page and choose another.")

    def of_job(self, job: Job) -> Entry:
        """Return the concept of a finished training.

        Raises:
            LoLDUError: If there is none, or it is in the trash.
        """
        for entry in self.list(job.owner):
            if entry.id == job.id:
                return entry
        raise LoLDUError(f"{job.name} has no concept in the library.")

    def steps(self, entry: Entry) -> dict[int, Entry]:
        """Return a concept at the saved steps of its training, its own step among them.

        Without the checkpoints, or if the step of the concept is unknown, it has no other steps.
        """
        with suppress(LoLDUError):
            own = entry.step or about(entry.path).steps
            run = entry.folder if entry.job is None else self._jobs.get(entry.job).folder
            found = {
                step: replace(entry, name=f"{entry.name}, step {step}", folder=folder, step=step)
                for step, folder in checkpoints(run).items()
                if (folder / CONCEPT).is_file()
            }
            if own and 0 < own <= _MOST_STEPS:  # an imported file may say anything
                return dict(sorted({**found, own: entry}.items()))
        return {}

    # ----------------------------------------------------------------------------- changing

    def keep(self, job: Job, step: int, name: str) -> Entry:
        """Make a concept of a checkpoint; the same checkpoint gives one concept.

        Raises:
            LoLDUError: If there is no such checkpoint, or the owner's library is full.
        """
        name, entry_id = shown(name), f"{job.id}-{step}"
        checkpoint = self._jobs.progress(job.id).checkpoints.get(step)
        if checkpoint is None or not (checkpoint / CONCEPT).is_file():
            raise LoLDUError(f"{job.name} has no checkpoint of step {step}; choose another step.")
        with self._locked():
            record = self._records().get(entry_id)
            if record is not None and (self._folder / entry_id / CONCEPT).is_file():
                record = replace(record, name=name, removed=None)
                self._write(self._folder / entry_id, record)
            else:
                shutil.rmtree(self._folder / entry_id, ignore_errors=True)  # deleted from the trash
                self._make_room(job.owner)
                record = Record(name, job.owner, time.time(), job.id, step)
                try:
                    with self._new(entry_id, record) as folder:
                        take(checkpoint, folder)
                        take_validation(job.folder, step, folder)
                except FileNotFoundError as error:
                    raise LoLDUError(
                        f"The checkpoint of step {step} is being removed; choose a later one."
                    ) from error
        return self._entry(entry_id, record)

    def add(self, file: Path, name: str, owner: str) -> Entry:
        """Import a concept file, or a zip of Export, after checking it.

        Args:
            file: The uploaded file.
            name: Name of the concept, such as the file name in the browser.
            owner: Owner of the new concept.

        Raises:
            LoLDUError: If the file is too large, or the owner's library is full.
            ConceptError: If the file is not a valid concept.
        """
        name = shown(name_of(file, name))
        entry_id, record = secrets.token_hex(12), Record(name, owner, time.time())
        with self._locked():
            self._make_room(owner)
            with self._new(entry_id, record) as folder:
                unpack(file, name, folder)  # check the copy, not the upload
                with named_errors(folder / CONCEPT, name):
                    concept = read_concept(folder / CONCEPT)
                config = {"base": base_without_paths(concept)}
                write_atomically(folder / CONFIG, tomli_w.dumps(config))
        return self._entry(entry_id, record)

    def rename(self, entry_id: str, owner: str, name: str) -> None:
        """Rename a concept.

        Raises:
            LoLDUError: If the owner has no such concept, or the name is empty.
        """
        name = shown(name)
        with self._locked():
            record = self._own(entry_id, owner)
            self._write(self._folder / entry_id, replace(record, name=name))

    def remove(self, entry_id: str, owner: str) -> None:
        """Move a concept to the trash, where it stays for 30 days.

        Raises:
            LoLDUError: If the owner has no such concept.
        """
        with self._locked():
            record = self._own(entry_id, owner)
            self._write(self._folder / entry_id, replace(record, removed=time.time()))

    def restore(self, entry_id: str, owner: str) -> None:
        """Restore a concept from the trash.

        Raises:
            LoLDUError: If it is no longer there.
        """
        with self._locked():
            record = self._records().get(entry_id)
            if (
                record is None
                or record.owner != owner
                or not (self._folder / entry_id / CONCEPT).is_file()
            ):
                raise LoLDUError("The concept is no longer in the trash.")
            self._write(self._folder / entry_id, replace(record, removed=None))

    # ------------------------------------------------------------------------------ private

    def _collect(self, owner: str) -> None:
        """Add the results of finished trainings that are new; removed ones stay removed."""
        finished = [
            job
            for job in self._jobs.list(owner, Kind.TRAIN, removed=None)
            if job.status is Status.FINISHED and self._is_new(job)
        ]
        if not finished:
            return
        with self._locked():
            for job in filter(self._is_new, finished):  # another page may have added it
                record = Record(job.name, job.owner, job.ended or time.time(), job.id)
                try:
                    with self._new(job.id, record) as folder:
                        take(job.folder, folder)
                except OSError as error:  # being moved to the trash, or the disk is full
                    logger.warning("%s could not be added to the library yet: %s", job.name, error)

    def _is_new(self, job: Job) -> bool:
        return not (self._folder / job.id).exists() and (job.folder / CONCEPT).is_file()

    def _of_runs(self) -> Iterator[Entry]:
        for path in self._runs.glob(f"*/{CONCEPT}"):
            with suppress(OSError):
                created = path.stat().st_mtime
                name = os.fsencode(path.parent.name).decode(errors="replace")  # for the page
                yield Entry(name, name, None, path.parent, created)

    def _own(self, entry_id: str, owner: str) -> Record:
        record = self._records().get(entry_id)
        if record is not None and record.owner == owner and not record.removed:
            return record
        if any(entry.id == entry_id for entry in self._of_runs()):
            raise LoLDUError(
                "This concept was trained from the command line and is shared: edit it in "
                "its folder."
            )
        raise LoLDUError("There is no such concept; reload the page and choose another.")

    def _records(self) -> dict[str, Record]:
        """Return the records of all concepts; a folder whose record is damaged is left alone."""
        found: dict[str, Record] = {}
        for path in self._folder.glob(f"[!.]*/{ENTRY}"):
            try:
                found[path.parent.name] = read_record(path)
            except (OSError, LoLDUError) as error:
                logger.warning("A concept is not listed: %s", error)
        return found

    def _entry(self, entry_id: str, record: Record) -> Entry:
        return Entry(
            entry_id,
            record.name,
            record.owner,
            self._folder / entry_id,
            record.created,
            record.job,
            record.step,
        )

    def _write(self, folder: Path, record: Record) -> None:
        write_atomically(folder / ENTRY, json.dumps(asdict(record), indent=2))

    @contextmanager
    def _new(self, entry_id: str, record: Record) -> Generator[Path]:
        """Yield a folder to fill; it becomes the concept's folder unless an error is raised."""
        with drafted(self._folder / entry_id) as folder:
            folder.mkdir(mode=0o700)
            yield folder
            self._write(folder, record)

    def _make_room(self, owner: str) -> None:
        """Delete from an owner's trash until one more concept fits.

        Raises:
            LoLDUError: If the library is full even with an empty trash.
        """
        sizes = {
            entry_id: sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            for entry_id, record in self._records().items()
            if record.owner == owner and ((folder := self._folder / entry_id) / CONCEPT).is_file()
        }
        records = self._records()
        trash = sorted(
            (entry_id for entry_id in sizes if records[entry_id].removed),
            key=lambda entry_id: records[entry_id].removed or 0,
        )
        while len(sizes) >= self._max_entries or sum(sizes.values()) >= self._max_bytes:
            if not trash:
                raise LoLDUError(
                    f"Your library is full ({len(sizes)} concepts, "
                    f"{sum(sizes.values()) / 2**20:.0f} MB): delete some first."
                )
            self._empty(trash[0])
            del sizes[trash.pop(0)]

    def _empty(self, entry_id: str) -> None:
        """Delete a concept's files but its entry, so that its training is not collected again."""
        for path in (self._folder / entry_id).iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != ENTRY:
                path.unlink()

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Lock the library against all threads and servers; the lock is not reentrant."""
        with (self._folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def read_record(path: Path) -> Record:
    """Read an `entry.json`.

    Raises:
        LoLDUError: If it is damaged, or of another version.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        record = Record(**typed_values(content, options(Record), str(path)))
        time.localtime(record.created + (record.removed or 0))  # the page shows the date
    except (ValueError, TypeError, ArithmeticError, RecursionError, AttributeError) as error:
        raise LoLDUError(f"{path} is damaged ({error}).") from error
    return record
