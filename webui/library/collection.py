"""The concepts there are to draw with: those of the studio, and those of the command line.

A concept of the studio has a folder of its own, with what its training left and an `entry.json`,
which alone says whether it is there or in the trash: every change is one rename of a file or
folder, and a server may be killed between any two.
"""

import fcntl
import json
import logging
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import tomli_w

from loldu import ConceptError, read_concept
from loldu.base.record import CONFIG
from loldu.errors import LoLDUError
from loldu.files import write_atomically
from webui.engine.job import Job, Kind, Status, shown
from webui.engine.jobs import Jobs
from webui.library.entry import CONCEPT, Entry, base_as_told, take, take_validation

logger = logging.getLogger("webui")

MOST_BYTES = 16 * 2**20
"""Of a concept file that is taken in; those of Stable Diffusion have tens of kilobytes."""
_ENTRY, _LOCK, _NEW = "entry.json", ".lock", ".new-"
_REMOVED_FOR_S = 30 * 24 * 3600


@dataclass(frozen=True)
class _Record:
    """What `entry.json` holds."""

    name: str
    owner: str
    created: float
    job: str | None = None
    step: int | None = None
    removed: float | None = None


class Library:
    """The concepts of all owners, shared by every process that opens the same folder."""

    def __init__(
        self,
        folder: Path,
        runs: Path,
        jobs: Jobs,
        *,
        max_entries: int = 200,
        max_bytes: int = 2**30,
    ) -> None:
        """Open or make the folder, and empty the trash of what is old.

        Args:
            folder: where the concepts are.
            runs: folder of runs of the command line.
            jobs: whose results become concepts here.
            max_entries: how many one owner may have.
            max_bytes: and how large all of them together.
        """
        self._folder = folder.absolute()
        self._runs = runs
        self._jobs = jobs
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._locked():
            for half in self._folder.glob(f"{_NEW}*"):
                shutil.rmtree(half)
            for entry_id, record in self._records().items():
                if record.removed and record.removed < time.time() - _REMOVED_FOR_S:
                    self._empty(entry_id)

    # ------------------------------------------------------------------------ what is there

    def list(self, owner: str) -> tuple[Entry, ...]:
        """The concepts that an owner may use, newest first."""
        self._collect(owner)
        entries = {entry.id: entry for entry in self._of_runs()}
        for entry_id, record in self._records().items():
            if record.owner == owner and not record.removed:
                entries[entry_id] = self._entry(entry_id, record)
        return tuple(sorted(entries.values(), key=lambda entry: entry.created, reverse=True))

    def get(self, entry_id: str | None, owner: str) -> Entry:
        """A concept that an owner may use.

        Raises:
            LoLDUError: there is none of that id for them.
        """
        for entry in self.list(owner):
            if entry.id == entry_id:
                return entry
        raise LoLDUError("There is no such concept; reload the page and choose another.")

    def of_job(self, job: Job) -> Entry:
        """The concept that a training has left.

        Raises:
            LoLDUError: there is none, or it is in the trash.
        """
        for entry in self.list(job.owner):
            if entry.id == job.id:
                return entry
        raise LoLDUError(f"{job.name} has no concept in the library.")

    # --------------------------------------------------------------------- what can be asked

    def keep(self, job: Job, step: int, name: str) -> Entry:
        """Make a concept of a step of a training; of the same step there is one.

        Raises:
            LoLDUError: it has no such checkpoint, or its owner's share is used up.
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
                shutil.rmtree(self._folder / entry_id, ignore_errors=True)  # long in the trash
                self._make_room(job.owner)
                record = _Record(name, job.owner, time.time(), job.id, step)
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
        """Take in a concept file from elsewhere, once it has been read and found sound.

        Args:
            file: an upload.
            name: what it is to be called, such as its file's name in the browser.
            owner: whose it becomes.

        Raises:
            LoLDUError: it is too large, or its owner's share is used up.
            ConceptError: it is not a sound concept.
        """
        name = shown(Path(name).name.removesuffix(".safetensors") or "concept")
        size = file.stat().st_size
        if size > MOST_BYTES:
            raise LoLDUError(
                f"{name} has {size / 2**20:.0f} MB and is no concept: the largest have some "
                "hundreds of kilobytes."
            )
        entry_id, record = secrets.token_hex(12), _Record(name, owner, time.time())
        with self._locked():
            self._make_room(owner)
            with self._new(entry_id, record) as folder:
                shutil.copyfile(file, folder / CONCEPT)  # what is checked is what is kept
                try:
                    concept = read_concept(folder / CONCEPT)
                except ConceptError as error:
                    told = str(error).replace(str(folder / CONCEPT), name)
                    raise ConceptError(told) from error
                write_atomically(folder / CONFIG, tomli_w.dumps({"base": base_as_told(concept)}))
        return self._entry(entry_id, record)

    def rename(self, entry_id: str, owner: str, name: str) -> None:
        """Show a concept under another name.

        Raises:
            LoLDUError: there is no such concept of this owner, or the name is empty.
        """
        name = shown(name)
        with self._locked():
            record = self._own(entry_id, owner)
            self._write(self._folder / entry_id, replace(record, name=name))

    def remove(self, entry_id: str, owner: str) -> None:
        """Put a concept into the trash, where it stays for 30 days.

        Raises:
            LoLDUError: there is no such concept of this owner.
        """
        with self._locked():
            record = self._own(entry_id, owner)
            self._write(self._folder / entry_id, replace(record, removed=time.time()))

    def restore(self, entry_id: str, owner: str) -> None:
        """Take a concept out of the trash.

        Raises:
            LoLDUError: it is no longer there.
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

    # -------------------------------------------------------------------------------- inside

    def _collect(self, owner: str) -> None:
        """Make a concept of every result that is not one yet; what was removed stays removed."""
        finished = [
            job
            for job in self._jobs.list(owner, Kind.TRAIN, removed=None)
            if job.status is Status.FINISHED and self._is_new(job)
        ]
        if not finished:
            return
        with self._locked():
            for job in filter(self._is_new, finished):  # another page may have been faster
                record = _Record(job.name, job.owner, job.ended or time.time(), job.id)
                try:
                    with self._new(job.id, record) as folder:
                        take(job.folder, folder)
                except OSError as error:  # its folder is on its way to the trash, the disk is full
                    logger.warning("%s is not in the library yet: %s", job.name, error)

    def _is_new(self, job: Job) -> bool:
        return not (self._folder / job.id).exists() and (job.folder / CONCEPT).is_file()

    def _of_runs(self) -> Iterator[Entry]:
        for path in self._runs.glob(f"*/{CONCEPT}"):
            with suppress(FileNotFoundError):
                created = path.stat().st_mtime
                yield Entry(path.parent.name, path.parent.name, None, path.parent, created)

    def _own(self, entry_id: str, owner: str) -> _Record:
        record = self._records().get(entry_id)
        if record is not None and record.owner == owner and not record.removed:
            return record
        if any(entry.id == entry_id for entry in self._of_runs()):
            raise LoLDUError(
                "This concept is of the command line and everybody's: it is changed in its folder."
            )
        raise LoLDUError("There is no such concept; reload the page and choose another.")

    def _records(self) -> dict[str, _Record]:
        return {
            path.parent.name: _Record(**json.loads(path.read_text(encoding="utf-8")))
            for path in self._folder.glob(f"[!.]*/{_ENTRY}")
        }

    def _entry(self, entry_id: str, record: _Record) -> Entry:
        return Entry(
            entry_id,
            record.name,
            record.owner,
            self._folder / entry_id,
            record.created,
            record.job,
            record.step,
        )

    def _write(self, folder: Path, record: _Record) -> None:
        write_atomically(folder / _ENTRY, json.dumps(asdict(record), indent=2))

    @contextmanager
    def _new(self, entry_id: str, record: _Record) -> Iterator[Path]:
        """A folder to fill, which becomes the concept's if that ends well."""
        folder = self._folder / f"{_NEW}{entry_id}"
        shutil.rmtree(folder, ignore_errors=True)  # of a server that was killed
        folder.mkdir(mode=0o700)
        try:
            yield folder
            self._write(folder, record)
            folder.rename(self._folder / entry_id)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _make_room(self, owner: str) -> None:
        """Empty an owner's trash as far as needed for one more concept.

        Raises:
            LoLDUError: what is left is as much as they may have.
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
        """Forget a concept but for its entry, so that a training's is not collected again."""
        for path in (self._folder / entry_id).iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _ENTRY:
                path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among all threads and servers; not twice in one."""
        with (self._folder / _LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
