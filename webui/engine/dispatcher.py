"""The dispatcher: starts queued jobs, one per device, and records how they end."""

import fcntl
import logging
import os
import shutil
import signal
import threading
from collections.abc import Sequence
from io import FileIO
from pathlib import Path

from loldu.errors import LoLDUError
from webui.engine import process
from webui.engine.job import ACTIVE, Job, Kind, Status
from webui.engine.jobs import Jobs
from webui.engine.options import GONE, flags
from webui.engine.progress import CARD, CONCEPTS, CONFIG, CONTROL, REPORT

logger = logging.getLogger("webui")

_INTERRUPTED = "Its process was killed, or the computer was turned off."


class Dispatcher:
    """Assigns devices to queued jobs; one server does so for a folder.

    Running jobs continue without a server, and the next server finds them.
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
        """Check the devices; nothing is started yet.

        Args:
            jobs: Jobs to dispatch.
            devices: Devices such as `cpu`, or `cuda:0` and `cuda:1`.
            niceness: Niceness of the processes, so that the page stays responsive.
            command: Command that runs a job.
            every_s: Seconds between two ticks.

        Raises:
            LoLDUError: If a device does not exist.
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
        self._wake = threading.Event()
        self._closing = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Tick in a thread until `close`.

        Raises:
            LoLDUError: If another server uses the folder.
        """
        self._claim()
        self._thread = threading.Thread(target=self._run, name="dispatcher", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop dispatching; running jobs continue."""
        self._closing = True
        self.wake()
        if self._thread is not None:
            self._thread.join()
        with self._ticking:
            if self._lock_file is not None:
                self._lock_file.close()
                self._lock_file = None

    def wake(self) -> None:
        """Tick now instead of at the next interval."""
        self._wake.set()

    def tick(self) -> None:
        """Record ended jobs and start queued ones.

        Raises:
            LoLDUError: If another server uses the folder.
        """
        with self._ticking:
            self._claim()
            for job in self._jobs.list():
                if job.status in ACTIVE:
                    self._look_after(job)
            self._begin_next()

    def _look_after(self, job: Job) -> None:
        """Record that a job has ended, or ask it again to stop; a failure is of this job alone."""
        try:
            if not process.is_running(job.folder):
                self._end(job)
            elif job.status is Status.STOPPING:
                _ask_to_stop(job.folder)
        except Exception:  # the disk may be full, or the files of the job damaged
            logger.exception("The state of %s could not be recorded; trying again.", job.name)

    def _run(self) -> None:
        while not self._closing:
            try:
                self.tick()
            except Exception:  # a full disk or a locked database may recover
                logger.exception("The queue could not be processed; trying again.")
            self._wake.wait(self._every_s)
            self._wake.clear()

    def _claim(self) -> None:
        """Lock the folder against other servers; the system unlocks it when this one ends."""
        if self._lock_file is not None:
            return
        lock_file = FileIO(self._jobs.folder / "dispatcher.lock", "a")
        try:
            fcntl.flock(lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock_file.close()
            raise LoLDUError(
                f"Another server uses the folder {self._jobs.folder}: stop it, or give this one "
                "another --studio."
            ) from error
        self._lock_file = lock_file

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
                why = f"The job could not be started: {error.strerror or error}{where}."
                self._jobs.end(job, Status.FAILED, why if job.folder.is_dir() else GONE)

    def _begin(self, job: Job, device: str) -> bool:
        """Start a job; if the server is killed in between, the job is queued or running."""
        with process.claimed(job.folder) as lock:
            if lock is None:
                return False
            shutil.rmtree(job.folder / CONTROL, ignore_errors=True)  # left by a killed process
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
                on_end=self.wake,
            )
            return True

    def _end(self, job: Job) -> None:
        """Record how a job ended, from the files that its process left."""
        if not job.folder.is_dir():
            self._jobs.end(job, Status.FAILED, GONE)
            return
        ending = process.ending(job.folder)
        if ending is None:
            if not process.was_started(job.folder):
                self._jobs.end(job, Status.QUEUED)  # the server was killed before the start
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
    """Ask a process to stop with a checkpoint, or end it at once while it loads.

    Called at every tick until the process is gone, so it must be repeatable.
    """
    try:
        (folder / CONTROL / "stop").touch()
    except OSError:
        # The trainer takes no requests while it loads or writes its result. It writes its config
        # file after loading; end it only before that.
        if not process.written_since_start(folder, folder / CONFIG):
            process.send(folder, signal.SIGTERM)


def _is_complete(job: Job) -> bool:
    """Return whether a job has written its result; the card or report is its last file."""
    folders = list((job.folder / CONCEPTS).glob("*/")) or [job.folder]
    last = CARD if job.kind is Kind.TRAIN else REPORT
    return all(process.written_since_start(job.folder, each / last) for each in folders)
