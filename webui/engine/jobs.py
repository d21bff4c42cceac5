"""The jobs of the studio: each has a row in SQLite and a folder for its files."""

import secrets
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from loldu.errors import LoLDUError
from webui.engine import process
from webui.engine.job import ACTIVE, ENDED, RESUMABLE, Job, Kind, Status, in_turns, shown
from webui.engine.options import require_options, write_options, write_score_options
from webui.engine.progress import CONTROL, Progress, RunReader

_SCHEMA_VERSION = 2
_SCHEMA = """
CREATE TABLE jobs (
    id TEXT PRIMARY KEY, kind TEXT NOT NULL, name TEXT NOT NULL, owner TEXT NOT NULL,
    concept TEXT,           -- of the library: what is scored
    status TEXT NOT NULL,
    wanted TEXT,            -- what it becomes when it has stopped
    device TEXT,            -- where it runs or ran last
    message TEXT NOT NULL DEFAULT '',
    place INTEGER NOT NULL, -- in the queue: when it was asked for
    turn INTEGER,           -- among all that were started, the last time
    created REAL NOT NULL,  -- this and the following in seconds since 1970
    started REAL, ended REAL, removed REAL
);
CREATE UNIQUE INDEX one_per_device ON jobs (device) WHERE status IN ('running', 'stopping');
CREATE INDEX by_owner ON jobs (owner);
"""


class Jobs:
    """The state of all jobs; several processes may open the same folder.

    Every change is one transaction. Ids and names from requests are never used as paths.
    """

    def __init__(
        self,
        folder: Path,
        max_queued: int = 10,
        before_queuing: Callable[[], None] = lambda: None,
    ) -> None:
        """Open or make the folder.

        Args:
            folder: Folder of the database, the runs and the trash.
            max_queued: Limit of queued jobs per owner.
            before_queuing: Raises LoLDUError if no job could run now.

        Raises:
            LoLDUError: If another version of the studio wrote the folder.
        """
        self.folder = folder.absolute()
        self._database = self.folder / "studio.sqlite"
        self._max_queued = max_queued
        self._before_queuing = before_queuing
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
                f"Another version of the studio wrote {self._database}; choose another folder."
            )
        for job in self.list(removed=None):
            self._put_in_place(job)
        self._reader = lru_cache(maxsize=64)(RunReader)

    # ------------------------------------------------------------------------------ reading

    def get(self, job_id: str) -> Job:
        """Return a job, also a removed one.

        Raises:
            LoLDUError: If there is none of that id.
        """
        with closing(self._connect()) as connection:
            return self._get(connection, job_id)

    def list(
        self, owner: str | None = None, kind: Kind | None = None, *, removed: bool | None = False
    ) -> tuple[Job, ...]:
        """Return all jobs, or those of an owner or a kind, oldest first.

        `removed=True` returns jobs in the trash instead; None returns both.
        """
        with closing(self._connect()) as connection:
            rows: Sequence[sqlite3.Row] = connection.execute(
                "SELECT * FROM jobs WHERE owner = COALESCE(?, owner) AND kind = COALESCE(?, kind) "
                "AND (removed NOTNULL) = COALESCE(?, removed NOTNULL) ORDER BY place",
                (owner, kind, removed),
            ).fetchall()
        return tuple(map(self._job, rows))

    def queue(self) -> tuple[Job, ...]:
        """Return the queued jobs in the order of their starts; owners take turns."""
        queued = [job for job in self.list() if job.status is Status.QUEUED]
        with closing(self._connect()) as connection:
            turns = connection.execute(
                "SELECT owner, MAX(turn) FROM jobs WHERE turn NOTNULL GROUP BY owner"
            ).fetchall()
        return in_turns(queued, dict(turns))

    def progress(self, job_id: str) -> Progress:
        """Return the progress of a run; cheap enough to call every second.

        Raises:
            LoLDUError: If there is no such job, or its folder is gone or damaged.
        """
        job = self.get(job_id)
        if not job.folder.is_dir():
            raise LoLDUError(f"The folder of {job.name} is gone ({job.folder}).")
        return self._reader(job.folder).read()

    # ----------------------------------------------------------------------------- changing

    def submit(
        self, name: str, owner: str, options: Mapping[str, Any], preset: str | None = None
    ) -> Job:
        """Queue a training.

        Args:
            name: Display name.
            owner: Username.
            options: Options of the trainer; see `webui.engine.options.write_options`.
            preset: Name of a preset of the trainer.

        Raises:
            LoLDUError: If the options are invalid, or the owner has too many queued jobs.
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
        """Queue the scoring of a concept; its current files are copied.

        Args:
            name: Display name.
            owner: Username.
            concept: Id of the concept in the library.
            files: Folder of the concept file and other files of its run.
            options: Options of `python -m eval adapter`, by name.
            real: Folder of real pictures; by default the training pictures.

        Raises:
            LoLDUError: If the options are invalid, or the owner has too many queued jobs.
        """
        write = partial(write_score_options, files=files, options=options, real=real)
        return self._submit(Kind.SCORE, name, owner, concept, write)

    def rename(self, job_id: str, name: str) -> None:
        """Rename a job.

        Raises:
            LoLDUError: If there is no such job, or the name is empty.
        """
        with self._change(job_id) as (connection, _):
            _update(connection, job_id, name=shown(name))

    def stop(self, job_id: str) -> None:
        """Stop a job after a checkpoint; a queued one leaves the queue at once. It can be resumed.

        Raises:
            LoLDUError: If it is neither queued nor running.
        """
        with self._change(job_id) as (connection, job):
            if job.status is Status.QUEUED:
                _update(connection, job_id, status=Status.STOPPED, ended=time.time())
            elif job.status not in ACTIVE:
                raise LoLDUError(f"{job.name} cannot be stopped: it is {_state(job)}.")
            elif job.wanted is not Status.CANCELLED:
                _update(connection, job_id, status=Status.STOPPING, wanted=Status.STOPPED)

    def add_frame(self, job_id: str) -> None:
        """Ask a training for validation pictures and a checkpoint of the step that it takes.

        Raises:
            LoLDUError: If it is not training.
        """
        job = self.get(job_id)
        if job.status not in ACTIVE:
            raise LoLDUError(f"{job.name} is not training: it is {_state(job)}.")
        try:
            for request in ("save", "sample"):
                (job.folder / CONTROL / request).touch()
        except OSError as error:  # the folder exists while the trainer takes requests
            raise LoLDUError(
                f"{job.name} takes no steps at this moment; try again when it does."
            ) from error

    def resume(self, job_id: str) -> None:
        """Queue a job again; it continues from its last checkpoint.

        Raises:
            LoLDUError: If it cannot be resumed, or its owner has too many queued jobs.
        """
        self._before_queuing()
        with self._change(job_id) as (connection, job):
            if job.status not in RESUMABLE or job.removed:
                raise LoLDUError(f"{job.name} cannot be resumed: it is {_state(job)}.")
            require_options(job)
            self._refuse_too_many(connection, job.owner)
            last = connection.execute("SELECT MAX(place) FROM jobs").fetchone()[0]
            back = {"wanted": None, "message": "", "ended": None, "place": last + 1}
            _update(connection, job_id, status=Status.QUEUED, **back)

    def remove(self, job_id: str) -> None:
        """Move a job to the trash; a running one stops first, and goes there when it has ended.

        A second call kills a process that has not stopped. A restored job can be resumed.

        Raises:
            LoLDUError: If it is in the trash.
        """
        with self._change(job_id) as (connection, job):
            now = time.time()
            if job.removed:
                raise LoLDUError(f"{job.name} cannot be removed: it is {_state(job)}.")
            if job.status in ENDED:
                _update(connection, job_id, removed=now)
            elif job.status is Status.QUEUED:
                _update(connection, job_id, status=Status.STOPPED, ended=now, removed=now)
            else:
                _update(connection, job_id, status=Status.STOPPING, wanted=Status.CANCELLED)
        if job.wanted is Status.CANCELLED:
            process.send(job.folder, signal.SIGKILL)
        self._put_in_place(self.get(job_id))

    def restore(self, job_id: str) -> None:
        """Restore a job from the trash.

        Raises:
            LoLDUError: If it is not there.
        """
        with self._change(job_id) as (connection, job):
            if not job.removed:
                raise LoLDUError(f"{job.name} is not in the trash.")
            _update(connection, job_id, removed=None)
        self._put_in_place(self.get(job_id))

    # --------------------------------------------------------------------- for the dispatcher

    def begin(self, job: Job, device: str) -> bool:
        """Record that a job runs, before it is started; return False if it is not queued."""
        with self._change(job.id) as (connection, now):
            if now.status is not Status.QUEUED:
                return False
            turn = connection.execute("SELECT COALESCE(MAX(turn), 0) + 1 FROM jobs").fetchone()[0]
            begun = {"device": device, "turn": turn, "started": time.time()}
            _update(connection, job.id, status=Status.RUNNING, **begun)
        return True

    def end(self, job: Job, status: Status, message: str = "") -> None:
        """Record how a job ended, or that it returns to its place in the queue.

        A job that was asked to stop has stopped, unless it finished or failed first. One that was
        to be removed goes to the trash.
        """
        with self._change(job.id) as (connection, now):
            if now.status in ENDED:
                return
            removed = now.wanted is Status.CANCELLED
            unasked = {Status.STOPPED, Status.INTERRUPTED, Status.QUEUED}
            if removed:
                unasked.add(Status.FAILED)
            if now.wanted is not None and status in unasked:
                status, message = Status.STOPPED, ""
            ended = None if status is Status.QUEUED else time.time()
            values = {"status": status, "message": message, "ended": ended, "wanted": None}
            _update(connection, job.id, **values, removed=ended if removed else None)
        self._put_in_place(self.get(job.id))

    # ------------------------------------------------------------------------------ private

    def _submit(
        self,
        kind: Kind,
        name: str,
        owner: str,
        concept: str | None,
        write: Callable[[Path], object],
    ) -> Job:
        """Make the folder of a job, write its options with `write`, and queue it."""
        self._before_queuing()
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

    def _refuse_too_many(self, connection: sqlite3.Connection, owner: str) -> None:
        queued = "SELECT COUNT(*) FROM jobs WHERE owner = ? AND status = 'queued'"
        if connection.execute(queued, (owner,)).fetchone()[0] >= self._max_queued:
            raise LoLDUError(
                f"You have {self._max_queued} jobs in the queue, which is the limit: wait until "
                "one has started, or remove one."
            )

    def _put_in_place(self, job: Job) -> None:
        """Move a folder to or from the trash; it repairs a move that a kill interrupted."""
        other = self.folder / ("runs" if job.removed else "trash") / job.id
        if other.exists() and not job.folder.exists():
            with suppress(FileNotFoundError):  # another server moved it
                other.rename(job.folder)

    def _connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._database, timeout=30, isolation_level=None)
        connection.row_factory = sqlite3.Row
        return connection

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        with closing(self._connect()) as connection:
            connection.execute("BEGIN IMMEDIATE")
            with connection:
                yield connection

    @contextmanager
    def _change(self, job_id: str) -> Generator[tuple[sqlite3.Connection, Job]]:
        """Open a transaction, and yield it with the current state of a job."""
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
