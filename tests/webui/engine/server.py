"""A server without a page, for tests that kill it: `server.py FOLDER [POINT [MODULE]]`.

It dies at a point by itself, or lives; the module is what trains, the stand-in unless given.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from webui.engine import process
from webui.engine.dispatcher import Dispatcher
from webui.engine.jobs import Jobs

STANDIN = (sys.executable, str(Path(__file__).with_name("standin.py")))


@contextmanager
def server(jobs: Jobs, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, __file__, jobs.folder, *arguments]) as running:
        try:
            yield running
        finally:
            running.kill()


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(function: Callable[..., Any]) -> Callable[..., Any]:
    def do_and_die(*arguments: object, **options: object) -> None:
        function(*arguments, **options)
        die()

    return do_and_die


if __name__ == "__main__":
    jobs = Jobs(Path(sys.argv[1]))
    point = sys.argv[2] if len(sys.argv) > 2 else ""
    if point == "before it is written down":
        jobs.begin = die  # type: ignore[method-assign]
    if point == "before the process starts":
        process.start = die
    if point == "before its pid is known":
        subprocess.Popen = after(subprocess.Popen)  # type: ignore[misc]
    if point == "after the start":
        process.start = after(process.start)
    command = (sys.executable, "-m", sys.argv[3]) if len(sys.argv) > 3 else STANDIN
    Dispatcher(jobs, ["cpu"], command=command, every_s=0.02).start()
    threading.Event().wait()
