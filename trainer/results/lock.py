"""Let one run at a time write into an output folder."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from loldu.errors import LoLDUError
from trainer.results.manifest import OWN

if sys.platform != "win32":
    import fcntl

logger = logging.getLogger(__name__)

_LOCK = "lock"


class BusyError(LoLDUError):
    """Another run is writing into the folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of an output folder inside the block; create the folder.

    The system frees the lock when the process ends for any reason. A folder that is still empty
    after the block, as after a mistake in the options, is removed again.

    Raises:
        BusyError: If another run holds it.
        LoLDUError: If the path is a file.
        OSError: If the folder cannot be made or written.
    """
    if folder.exists() and not folder.is_dir():
        raise LoLDUError(f"--output_dir {folder} is a file; name a folder.")
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / OWN / _LOCK
    lock = _take(path)
    try:
        yield
    finally:
        with suppress(OSError):
            if os.listdir(path.parent) == [_LOCK]:  # nothing was written
                path.unlink()
                path.parent.rmdir()
                if not was_there:
                    folder.rmdir()
        os.close(lock)


def _take(path: Path) -> int:
    """Open and lock a file; return its descriptor."""
    while True:
        path.parent.mkdir(exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            _lock(lock)
        except BlockingIOError as error:
            holder = os.read(lock, 100).decode("ascii", "replace").strip()
            os.close(lock)
            by = f" (process {holder})" if holder else ""
            raise BusyError(
                f"Another training{by} is writing into --output_dir {path.parent.parent}; wait "
                "until it ends, stop it, or name another folder."
            ) from error
        except OSError as error:  # some network filesystems
            logger.warning(
                "%s cannot be locked (%s): start no second training in this folder.",
                path.parent.parent,
                error.strerror,
            )
            return lock
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                os.ftruncate(lock, 0)
                os.pwrite(lock, str(os.getpid()).encode(), 0)
                return lock
        os.close(lock)  # its holder removed the file in the meantime


def _lock(descriptor: int) -> None:
    if sys.platform != "win32":
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
