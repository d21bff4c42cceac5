"""The jobs of the studio: a row each in SQLite, and a folder each for what they leave."""

import secrets
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from loldu.errors import LoLDUError
from webui.engine import process
from webui.engine.job import ACTIVE, ENDED, RESUMABLE, Job, Kind, Status, in_turns, shown
from webui.engine.options import write_options, write_score_options
from webui.engine.progress import CONTROL, Progress, RunReader

_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    owner TEXT NOT NULL,
    concept TEXT,           -- of the library: what is scored
    status TEXT NOT NULL,
    wanted TEXT,            -- what it becomes when it has stopped
    device TEXT,            -- where it runs or ran last
    message TEXT NOT NULL DEFAULT '',
    place INTEGER NOT NULL, -- in the queue: when it was asked for
    turn INTEGER,           -- among all that were started, the last time
    created REAL NOT NULL,  -- this and the following in seconds since 1970
    started REAL,
    ended REAL,
    removed REAL
);
CREATE UNIQUE INDEX one_per_device ON jobs (device) WHERE status IN ('running', 'stopping');
CREATE INDEX by_owner ON jobs (owner);
"""


class Jobs:
    """The state of all jobs, shared by every process that opens the same folder.

    Every change is one transaction. Ids are looked up and never made into paths, and neither is
    a name.
    """

    def __init__(self, folder: Path, max_queued: int = 10) -> None:
        """Open or make the folder.

        Args:
            folder: where the database, the runs and the trash are.
            max_queued: how many jobs one owner may have in the queue.

        Raises:
            LoLDUError: the folder is of another version of the studio.
        """
        self.folder = folder.absolute()
        self._database = self.folder / "studio.sqlite"
        self._max_queued = max_queued
        for name in ("runs", "trash"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
        with self._transaction() as connection:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in _SCHEMA.split(";"):
                    connection.execute(statement)
                connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
        if version not in (0, _SCHEMA_VERSION):
            raise LoLDUError(
                f"{self._database} is of another version of the studio; name another folder."
            )
        for job in self.list(removed=None):
            self._put_in_place(job)
        self._reader = lru_cache(maxsize=64)(RunReader)

    # ------------------------------------------------------------------------ what is there

    def get(self, job_id: str) -> Job:
        """Look up a job, a removed one too.

        Raises:
            LoLDUError: there is none.
        """
        with closing(self._connect()) as connection:
            return self._get(connection, job_id)

    def list(
        self, owner: str | None = None, kind: Kind | None = None, *, removed: bool | None = False
    ) -> tuple[Job, ...]:
        """All jobs, or those of an owner or a kind, as they were asked for.

        With `removed` it is those in the trash, and None gives both.
        """
        with closing(self._connect()) as connection:
            rows: Sequence[sqlite3.Row] = connection.execute(
                "SELECT * FROM jobs WHERE owner = COALESCE(?, owner) AND kind = COALESCE(?, kind) "
                "AND (removed NOTNULL) = COALESCE(?, removed NOTNULL) ORDER BY place",
                (owner, kind, removed),
            ).fetchall()
        return tuple(map(self._job, rows))

    def queue(self) -> tuple[Job, ...]:
        """The queued jobs in the order of their starts: the owners in turn, each one's in order."""
        queued = [job for job in self.list() if job.status is Status.QUEUED]
        with closing(self._connect()) as connection:
            turns = connection.execute(
                "SELECT owner, MAX(turn) FROM jobs WHERE turn NOTNULL GROUP BY owner"
            ).fetchall()
        return in_turns(queued, dict(turns))

    def progress(self, job_id: str) -> Progress:
        """What a page shows of a run; cheap to ask for every second.

        Raises:
            LoLDUError: there is no such job, or its folder is gone.
        """
        job = self.get(job_id)
        try:
            return self._reader(job.folder).read()
        except FileNotFoundError as error:
            raise LoLDUError(f"The folder of {job.name} is gone ({job.folder}).") from error

    # --------------------------------------------------------------------- what can be asked

    def submit(
        self, name: str, owner: str, options: Mapping[str, Any], preset: str | None = None
    ) -> Job:
        """Queue a training.

        Args:
            name: shown, and nothing else.
            owner: a user or a browser session.
            options: the trainer's, by name; see `webui.engine.options.write_options`.
            preset: one of the trainer's.

        Raises:
            LoLDUError: the options cannot work, or the owner has too many jobs in the queue.
        """
        write = partial(write_options, options=options, preset=preset)
        return self._submit(Kind.TRAIN, name, owner, None, write)

    def submit_score(
        self,
        name: str,
        owner: str,
        concept: str,
        files: Path,
        options: Mapping[str, Any],
        real: Path | None = None,
    ) -> Job:
        """Queue the scoring of a concept, as it is now.

        Args:
            name: shown, and nothing else.
            owner: a user or a browser session.
            concept: its id in the library.
            files: folder with its concept file, and what its run left beside it.
            options: those of `python -m eval adapter`, by name.
            real: folder with true pictures of it; those it was taught with unless given.

        Raises:
            LoLDUError: the options cannot work, or the owner has too many jobs in the queue.
        """
        write = partial(write_score_options, files=files, options=options, real=real)
        return self._submit(Kind.SCORE, name, owner, concept, write)

    def rename(self, job_id: str, name: str) -> None:
        """Show a job under another name.

        Raises:
            LoLDUError: there is no such job, or the name is empty.
        """
        with self._change(job_id) as (connection, _):
            _update(connection, job_id, name=shown(name))

    def stop(self, job_id: str) -> None:
        """Have it end with a checkpoint, to be resumed; out of the queue it goes at once.

        Raises:
            LoLDUError: it is not queued and does not run.
        """
        self._end_early(job_id, Status.STOPPED)

    def cancel(self, job_id: str) -> None:
        """Have it end for good; the second time, a process that does not stop is killed.

        Raises:
            LoLDUError: it is not queued and does not run.
        """
        before = self._end_early(job_id, Status.CANCELLED)
        if before.wanted is Status.CANCELLED:
            process.send(before.folder, signal.SIGKILL)

    def save_now(self, job_id: str) -> None:
        """Have it write a checkpoint.

        Raises:
            LoLDUError: it does not train.
        """
        self._ask(job_id, "save")

    def sample_now(self, job_id: str) -> None:
        """Have it draw validation pictures.

        Raises:
            LoLDUError: it does not train.
        """
        self._ask(job_id, "sample")

    def finish_now(self, job_id: str) -> None:
        """Have it end with the result as it is.

        Raises:
            LoLDUError: it does not train.
        """
        self._ask(job_id, "finish")

    def resume(self, job_id: str) -> None:
        """Queue it again, to go on from its last checkpoint.

        Raises:
            LoLDUError: it cannot be resumed, or its owner has too many jobs in the queue.
        """
        with self._change(job_id) as (connection, job):
            if job.status not in RESUMABLE or job.removed:
                raise LoLDUError(f"{job.name} cannot be resumed: it is {_state(job)}.")
            self._refuse_too_many(connection, job.owner)
            last = connection.execute("SELECT MAX(place) FROM jobs").fetchone()[0]
            back = {"wanted": None, "message": "", "ended": None, "place": last + 1}
            _update(connection, job_id, status=Status.QUEUED, **back)

    def remove(self, job_id: str) -> None:
        """Put a job that has ended into the trash.

        Raises:
            LoLDUError: it has not ended, or is in the trash.
        """
        with self._change(job_id) as (connection, job):
            if job.status not in ENDED or job.removed:
                raise LoLDUError(f"{job.name} cannot be removed: it is {_state(job)}.")
            _update(connection, job_id, removed=time.time())
        self._put_in_place(self.get(job_id))

    def restore(self, job_id: str) -> None:
        """Take a job out of the trash.

        Raises:
            LoLDUError: it is not there.
        """
        with self._change(job_id) as (connection, job):
            if not job.removed:
                raise LoLDUError(f"{job.name} is not in the trash.")
            _update(connection, job_id, removed=None)
        self._put_in_place(self.get(job_id))

    # --------------------------------------------------------------------- for the dispatcher

    def begin(self, job: Job, device: str) -> bool:
        """Write down that a job runs, before it does; false if it is no longer queued."""
        with self._change(job.id) as (connection, now):
            if now.status is not Status.QUEUED:
                return False
            turn = connection.execute("SELECT COALESCE(MAX(turn), 0) + 1 FROM jobs").fetchone()[0]
            begun = {"device": device, "turn": turn, "started": time.time()}
            _update(connection, job.id, status=Status.RUNNING, **begun)
        return True

    def end(self, job: Job, status: Status, message: str = "") -> None:
        """Write down how a job ended, or that it goes back to its place in the queue.

        One that was to stop has done so, unless it reached its end or made a mistake first.
        """
        with self._change(job.id) as (connection, now):
            if now.status in ENDED:
                return
            unasked = {Status.STOPPED, Status.INTERRUPTED, Status.QUEUED}
            if now.wanted is Status.CANCELLED:
                unasked.add(Status.FAILED)
            if now.wanted is not None and status in unasked:
                status, message = now.wanted, ""
            ended = None if status is Status.QUEUED else time.time()
            _update(connection, job.id, status=status, message=message, ended=ended, wanted=None)

    # -------------------------------------------------------------------------------- inside

    def _submit(
        self,
        kind: Kind,
        name: str,
        owner: str,
        concept: str | None,
        write: Callable[[Path], object],
    ) -> Job:
        """Make a folder, have its options written into it, and queue it."""
        row = {"id": secrets.token_hex(12), "kind": kind, "name": shown(name), "owner": owner}
        row |= {"concept": concept, "status": Status.QUEUED, "created": time.time()}
        folder = self.folder / "runs" / str(row["id"])
        folder.mkdir(mode=0o700)
        try:
            write(folder)
            with self._transaction() as connection:
                self._refuse_too_many(connection, owner)
                connection.execute(
                    f"INSERT INTO jobs ({', '.join(row)}, place) VALUES "
                    "(:id, :kind, :name, :owner, :concept, :status, :created, "
                    "(SELECT COALESCE(MAX(place), 0) + 1 FROM jobs))",
                    row,
                )
        except BaseException:
            shutil.rmtree(folder)
            raise
        return self.get(str(row["id"]))

    def _end_early(self, job_id: str, wanted: Status) -> Job:
        """Note what a job is to become; a queued one becomes it. The job as it was before."""
        with self._change(job_id) as (connection, job):
            if job.status is Status.QUEUED:
                _update(connection, job_id, status=wanted, ended=time.time())
            elif job.status not in ACTIVE:
                raise LoLDUError(f"{job.name} cannot be stopped: it is {_state(job)}.")
            elif job.wanted is not Status.CANCELLED:
                _update(connection, job_id, status=Status.STOPPING, wanted=wanted)
        return job

    def _ask(self, job_id: str, request: str) -> None:
        job = self.get(job_id)
        if job.status not in ACTIVE:
            raise LoLDUError(f"{job.name} does not train: it is {_state(job)}.")
        try:
            (job.folder / CONTROL / request).touch()
        except OSError as error:  # the folder is there while the trainer listens
            raise LoLDUError(
                f"{job.name} is not training at this moment; ask again when it takes steps."
            ) from error

    def _refuse_too_many(self, connection: sqlite3.Connection, owner: str) -> None:
        queued = "SELECT COUNT(*) FROM jobs WHERE owner = ? AND status = 'queued'"
        if connection.execute(queued, (owner,)).fetchone()[0] >= self._max_queued:
            raise LoLDUError(
                f"You have {self._max_queued} trainings in the queue, which is the most; wait "
                "until one has started, or cancel one."
            )

    def _put_in_place(self, job: Job) -> None:
        """Move a folder to or from the trash, also after being killed in between."""
        other = self.folder / ("runs" if job.removed else "trash") / job.id
        if other.exists() and not job.folder.exists():
            with suppress(FileNotFoundError):  # another server was faster
                other.rename(job.folder)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._database, timeout=30, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                yield connection

    @contextmanager
    def _change(self, job_id: str) -> Iterator[tuple[sqlite3.Connection, Job]]:
        """A transaction on a job as it is now."""
        with self._transaction() as connection:
            yield connection, self._get(connection, job_id)

    def _get(self, connection: sqlite3.Connection, job_id: str) -> Job:
        row = connection.execute("SELECT * FROM jobs WHERE id = ?", (job_id,)).fetchone()
        if row is None:
            raise LoLDUError("There is no such training; reload the page.")
        return self._job(row)

    def _job(self, row: sqlite3.Row) -> Job:
        values = dict(row)
        values["kind"] = Kind(values["kind"])
        values["status"] = Status(values["status"])
        values["wanted"] = Status(values["wanted"]) if values["wanted"] else None
        folder = self.folder / ("trash" if values["removed"] else "runs") / values["id"]
        return Job(**values, folder=folder)


def _update(connection: sqlite3.Connection, job_id: str, **values: object) -> None:
    assigned = ", ".join(f"{column} = ?" for column in values)
    connection.execute(f"UPDATE jobs SET {assigned} WHERE id = ?", (*values.values(), job_id))


def _state(job: Job) -> str:
    return "in the trash" if job.removed else job.status
