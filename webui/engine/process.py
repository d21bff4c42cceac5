"""The process of a job: it outlives the server, and holds a lock while it runs.

The server locks a file in the folder of the job and passes the open file to the process. The
system frees the lock when the process ends for any reason, and never before. So no process is
started twice or mistaken for another, and a server may be killed right after starting one.

`python -m webui.engine.process` is the process itself.
"""

import fcntl
import json
import os
import re
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from loldu.errors import LoLDUError
from loldu.files import write_atomically
from webui.engine.job import Kind

LOG = "log.txt"
_LOCK, _ENDING = "process.lock", "ending.json"
COMMAND = (sys.executable, "-m", "webui.engine.process")

_KEPT = {
    *("PATH", "HOME", "USER", "LANG", "TZ", "TMPDIR", "LD_LIBRARY_PATH", "PYTHONPATH"),
    *("CC", "CXX"),  # for --compile
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
    *("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"),
}
_KEPT_PREFIXES = (
    *("LC_", "XDG_", "HF_", "OMP_", "MKL_"),
    *("TORCH", "PYTORCH_", "TRITON_", "CUDA_", "NVIDIA_"),
)
_SECRET = ("TOKEN", "KEY", "SECRET", "PASSWORD")


@dataclass(frozen=True)
class Ending:
    """How a process ended; a killed process leaves none."""

    status: int
    """The exit status of the trainer's command."""
    sentence: str
    """Error message, or ""."""


@contextmanager
def claimed(folder: Path) -> Generator[int | None]:
    """Lock a folder for a new process; yield the open lock, or None while one is running.

    Raises:
        OSError: If the folder is gone or not writable.
    """
    lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
            return
        (folder / _ENDING).unlink(missing_ok=True)
        os.ftruncate(lock, 0)
        yield lock
    finally:
        os.close(lock)  # the process inherited a copy


def start(
    folder: Path,
    lock: int,
    kind: Kind,
    flags: Sequence[str],
    *,
    device: str,
    niceness: int = 0,
    command: Sequence[str] = COMMAND,
    on_end: Callable[[], object] = lambda: None,
) -> None:
    """Start a job in a session of its own; its output goes to `log.txt`.

    Args:
        folder: Folder of the job.
        lock: Open lock of the folder; the process holds it from now on.
        kind: Kind of the job.
        flags: Flags of the job's command.
        device: Device to run on.
        niceness: Niceness of the process.
        command: Command that runs the job.
        on_end: Called from another thread when the process has ended.

    Raises:
        OSError: If it cannot be started.
    """
    with (folder / LOG).open("ab") as log:
        log.write(b"Starting.\n")
        log.flush()
        process = subprocess.Popen(
            [*command, str(folder), str(lock), str(niceness), kind, *flags],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
            env=environment(os.environ, device),
        )
    if not os.fstat(lock).st_size:  # otherwise the process wrote it
        _write_pid(lock, process.pid)

    def wait() -> None:
        process.wait()
        on_end()

    threading.Thread(target=wait, name=f"{kind} {process.pid}", daemon=True).start()


def environment(of_server: Mapping[str, str], device: str) -> dict[str, str]:
    """Return the environment of a job: no secrets of the server, and one device.

    Raises:
        LoLDUError: If the device does not exist.
    """
    kept = {
        name: value
        for name, value in of_server.items()
        if (name in _KEPT or name.startswith(_KEPT_PREFIXES))
        and not any(word in name.upper() for word in _SECRET)
    }
    kept["PYTHONUNBUFFERED"] = "1"
    if device == "cpu":
        return kept | {"CUDA_VISIBLE_DEVICES": "", "ACCELERATE_USE_CPU": "yes"}
    if device == "mps":
        return kept
    if not (match := re.fullmatch(r"cuda(?::(\d+))?", device)):
        raise LoLDUError(f"There is no device {device}; use cpu, mps or cuda:0.")
    index, visible = int(match[1] or 0), of_server.get("CUDA_VISIBLE_DEVICES")
    of_machine = visible.split(",") if visible else [str(number) for number in range(index + 1)]
    if index >= len(of_machine):
        raise LoLDUError(f"There is no device {device}: CUDA_VISIBLE_DEVICES is {visible}.")
    return kept | {"CUDA_VISIBLE_DEVICES": of_machine[index]}


def is_running(folder: Path) -> bool:
    """Return whether the process of a folder runs, whichever server started it."""
    try:
        lock = os.open(folder / _LOCK, os.O_RDONLY)
    except OSError:  # never started, or the folder is gone
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def was_started(folder: Path) -> bool:
    """Return whether a process has started since the folder was last claimed."""
    return _pid(folder) is not None


def send(folder: Path, signal_number: int) -> None:
    """Send a signal to the process of a folder, if it runs; stale pids are never used."""
    pid = _pid(folder)
    if pid is not None and is_running(folder):
        with suppress(ProcessLookupError):
            os.kill(pid, signal_number)


def written_since_start(folder: Path, file: Path) -> bool:
    """Return whether a file was written after the folder's process started."""
    try:
        return file.stat().st_mtime_ns >= (folder / _LOCK).stat().st_mtime_ns
    except OSError:
        return False


def ending(folder: Path) -> Ending | None:
    """Return how the last process of a folder ended, or None if it was killed or left no word."""
    try:
        content = json.loads((folder / _ENDING).read_text(encoding="utf-8"))
        return Ending(int(content["status"]), str(content["sentence"]))
    except (OSError, ValueError, LookupError, TypeError, OverflowError, RecursionError):
        return None


def _pid(folder: Path) -> int | None:
    try:
        return int((folder / _LOCK).read_text(encoding="ascii"))
    except (OSError, ValueError):  # none was started
        return None


def _write_pid(lock: int, pid: int) -> None:
    os.pwrite(lock, str(pid).encode(), 0)


def main(
    argv: Sequence[str],
    commands: Mapping[Kind, Callable[[Sequence[str]], tuple[int, str]]] | None = None,
) -> int:
    """Run a job, write how it ended, and return the exit status.

    Args:
        argv: Folder, file descriptor of its lock, niceness, kind, and the flags.
        commands: Commands by kind; by default those of trainer and eval.
    """
    folder, lock, kind, flags = Path(argv[0]), int(argv[1]), Kind(argv[3]), argv[4:]
    _write_pid(lock, os.getpid())  # the server may have been killed before it did
    os.set_inheritable(lock, False)  # child processes may outlive the trainer
    os.nice(int(argv[2]))
    try:
        command = commands[kind] if commands else _command(kind)
        how = Ending(*command(flags))
    except SystemExit as error:
        how = Ending(
            error.code if isinstance(error.code, int) else 1,
            f"The options are invalid; see {LOG}.",
        )
    except Exception as error:
        traceback.print_exc()
        summary = str(error).splitlines()[:1] or [type(error).__name__]
        what = "training" if kind is Kind.TRAIN else "scoring"
        how = Ending(1, f"The {what} failed ({summary[0]}); see its {LOG}.")
    else:
        if how.sentence:
            sys.stderr.write(f"{how.sentence}\n")
    write_atomically(folder / _ENDING, json.dumps(asdict(how)))
    return how.status


def _command(kind: Kind) -> Callable[[Sequence[str]], tuple[int, str]]:
    if kind is Kind.TRAIN:
        from trainer.__main__ import outcome
    else:
        from eval.__main__ import outcome
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
