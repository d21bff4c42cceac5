"""Starts the jobs of the queue, one a device, and writes down how they end."""

import fcntl
import logging
import os
import shutil
import signal
import threading
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from webui.engine import process
from webui.engine.job import ACTIVE, Job, Kind, Status
from webui.engine.jobs import Jobs
from webui.engine.options import flags
from webui.engine.progress import CARD, CONCEPTS, CONFIG, CONTROL, REPORT

logger = logging.getLogger("webui")

_INTERRUPTED = "Its process was killed, or the computer was turned off."


class Dispatcher:
    """Gives devices to jobs.

    Several servers may share a folder: one of them dispatches, and when it ends, however that
    comes about, another does. Trainings go on without any.
    """

    def __init__(
        self,
        jobs: Jobs,
        devices: Sequence[str],
        *,
        niceness: int = 5,
        command: Sequence[str] = process.COMMAND,
        every_s: float = 1.0,
    ) -> None:
        """Start nothing yet.

        Args:
            jobs: what there is to do.
            devices: such as `cpu`, or `cuda:0` and `cuda:1`.
            niceness: how far trainings stand back for the page and all else.
            command: what is started.
            every_s: time between two looks.

        Raises:
            LoLDUError: there is no such device.
        """
        for device in devices:
            process.environment(os.environ, device)
        self._jobs = jobs
        self.devices = tuple(devices)
        self._niceness = niceness
        self._command = command
        self._every_s = every_s
        self._ticking = threading.Lock()
        self._lock_file: FileIO | None = None
        self._look = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Look again and again, in a thread, until this is closed."""
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Let another server dispatch; what trains goes on."""
        self._closing = True
        self.look()
        if self._thread is not None:
            self._thread.join()
        with self._ticking:
            if self._lock_file is not None:
                self._lock_file.close()
                self._lock_file = None

    def look(self) -> None:
        """Look now: something was asked for, or has ended."""
        self._look.set()

    def tick(self) -> bool:
        """Look once; false if another server dispatches."""
        with self._ticking:
            if not self._is_the_one():
                return False
            for job in self._jobs.list():
                if job.status not in ACTIVE:
                    continue
                if not process.is_running(job.folder):
                    self._end(job)
                elif job.status is Status.STOPPING:
                    _ask_to_stop(job.folder)
            self._begin_next()
            return True

    def _run(self) -> None:
        while not self._closing:
            try:
                self.tick()
            except Exception:  # a full disk, a locked database: it may be well a second later
                logger.exception("The queue could not be looked after; trying again.")
            self._look.wait(self._every_s)
            self._look.clear()

    def _is_the_one(self) -> bool:
        if self._lock_file is None:
            lock_file = FileIO(self._jobs.folder / "dispatcher.lock", "a")
            try:
                fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock_file.close()
                return False
            self._lock_file = lock_file
        return True

    def _begin_next(self) -> None:
        taken = {job.device for job in self._jobs.list() if job.status in ACTIVE}
        free = [device for device in self.devices if device not in taken]
        for job in self._jobs.queue():
            if not free:
                return
            try:
                if self._begin(job, free[0]):
                    del free[0]
            except OSError as error:
                where = f" ({error.filename})" if error.filename else ""
                why = f"It could not be started: {error.strerror or error}{where}."
                self._jobs.end(job, Status.FAILED, why)

    def _begin(self, job: Job, device: str) -> bool:
        """Start a job; being killed between any two lines leaves it queued, or running."""
        with process.claimed(job.folder) as lock:
            if lock is None:
                return False
            shutil.rmtree(job.folder / CONTROL, ignore_errors=True)  # of a process that was killed
            if not self._jobs.begin(job, device):
                return False
            process.start(
                job.folder,
                lock,
                job.kind,
                flags(job.folder, job.kind),
                device=device,
                niceness=self._niceness,
                command=self._command,
                on_end=self.look,
            )
            return True

    def _end(self, job: Job) -> None:
        """Judge a job without a process by what that has left."""
        ending = process.ending(job.folder)
        if ending is None:
            if not process.was_started(job.folder):
                self._jobs.end(job, Status.QUEUED)  # the server was killed before it could
            elif _is_complete(job):
                self._jobs.end(job, Status.FINISHED)
            else:
                self._jobs.end(job, Status.INTERRUPTED, _INTERRUPTED)
        elif ending.status == 0:
            self._jobs.end(job, Status.FINISHED)
        elif ending.status == 130:
            self._jobs.end(job, Status.STOPPED)
        else:
            self._jobs.end(job, Status.FAILED, ending.sentence)


def _ask_to_stop(folder: Path) -> None:
    """Stop with a checkpoint, or at once while there is nothing to keep yet.

    Asked again and again until the process is gone, so each way must stand that.
    """
    try:
        (folder / CONTROL / "stop").touch()
    except OSError:
        # The trainer does not listen: it loads, and writes its options when it has done so, or
        # it writes the result, and is let.
        if not process.written_since_start(folder, folder / CONFIG):
            process.send(folder, signal.SIGTERM)


def _is_complete(job: Job) -> bool:
    """Whether a job has written its result, of which the card or the picture is the last."""
    folders = list((job.folder / CONCEPTS).glob("*/")) or [job.folder]
    last = CARD if job.kind is Kind.TRAIN else REPORT
    return all(process.written_since_start(job.folder, each / last) for each in folders)
