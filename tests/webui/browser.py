"""The studio, served by its command, and a browser."""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

PATIENCE_MS = int(os.environ.get("STUDIO_PATIENCE_MS", "240000"))
TAKEN = os.environ.get("STUDIO_PICTURES")
"""Folder for pictures of the page, or None."""
OLDER, NEWER = "An <b>older</b> one", "A newer one"
"""Stopped trainings in the studio of the browser tests."""
ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass(frozen=True)
class Server:
    """A served studio.

    Attributes:
        url: of the page.
        process: of the command.
    """

    url: str
    process: subprocess.Popen[str]

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


def free_port() -> int:
    """Return a free port below the range from which the system takes ports for connections."""
    while True:
        port = random.SystemRandom().randrange(10_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


@contextmanager
def served(studio: Path, *flags: str, port: int | None = None) -> Iterator[Server]:
    """Serve the page from a new process, on a free port by default."""
    port = port or free_port()
    command = [sys.executable, "-m", "webui", "--port", str(port), "--studio", str(studio)]
    with subprocess.Popen(
        [*command, *flags],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    ) as process:
        assert process.stderr
        said = ""
        while "Open http" not in said:
            line = process.stderr.readline()
            assert line, f"the page is not served: {said}"
            said += line
        yield Server(f"http://127.0.0.1:{port}/", process)
        process.terminate()


def installed_browser() -> str | None:
    """Return a browser of the system that Playwright can control."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)
