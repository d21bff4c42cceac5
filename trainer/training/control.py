"""Requests to a run while it trains, by signal or by an empty file."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Flag, auto
from functools import reduce
from operator import or_
from types import FrameType
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object

from trainer.options.config import RunConfig

logger = logging.getLogger(__name__)

CONTROL = "control"


class Request(Flag):
    """A request; its lower-case name is the name of its file in `<output_dir>/control/`."""

    SAVE = auto()
    """Write a checkpoint now."""
    SAMPLE = auto()
    """Draw validation pictures now."""
    STOP = auto()
    """Write a checkpoint and end; --resume latest continues from there."""
    FINISH = auto()
    """Write a checkpoint and the result as it is now, and end."""
    ENDS = STOP | FINISH


_FILES = {str(request.name).lower(): request for request in Request}
_SIGNALS = {
    getattr(signal, name): request
    for name, request in (
        ("SIGINT", Request.STOP),
        ("SIGTERM", Request.STOP),
        ("SIGHUP", Request.STOP),  # the terminal or the connection was closed
        ("SIGBREAK", Request.STOP),
        ("SIGUSR1", Request.SAVE),
        ("SIGUSR2", Request.SAMPLE),
    )
    if hasattr(signal, name)  # no platform has them all
}
_HANGUP = getattr(signal, "SIGHUP", None)
_AGAIN_S = 1.0
"""A launcher passes on the Ctrl-C that its processes already received; that is no second Ctrl-C."""
_STOPPING = b"\nStopping after this step, with a checkpoint; once more stops at once, without.\n"


class Control:
    """Collects requests; between two steps the loop takes them with `asked`.

    A request is an empty file. Requests from before this object exists do not count: the files of
    an earlier run are removed.
    """

    def __init__(self, run: RunConfig, accelerator: Accelerator) -> None:
        """Watch the run's output folder."""
        self._folder = run.output_dir / CONTROL
        self._accelerator = accelerator
        # Several processes must agree on the step, which makes them wait for the device; they agree
        # at the steps where the log makes them wait anyway.
        self._every = 1 if accelerator.num_processes == 1 else run.logging_steps
        self._by_signal = Request(0)
        self._stopping_since: float | None = None
        self._strangers: set[str] = set()
        if accelerator.is_main_process:
            self._take_files()

    def asked(self, step: int) -> Request:
        """Return the requests since the last call, the same in every process."""
        if step % self._every:
            return Request(0)
        requests, self._by_signal = self._by_signal, Request(0)
        if self._accelerator.is_main_process:
            requests |= self._take_files()
        return reduce(or_, gather_object([requests]))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Make the folder of requests and handle signals inside the block.

        Before the block, Ctrl-C ends the process as usual: there is nothing to save yet.
        """
        former: dict[int, Any] = {}
        if self._accelerator.is_main_process:
            self._folder.mkdir(parents=True, exist_ok=True)
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in _SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:
                    former[number] = signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
            if self._accelerator.is_main_process:
                with suppress(OSError):  # not empty: a request came too late
                    self._folder.rmdir()

    def _take_files(self) -> Request:
        """Return the requests in the folder, and remove their files."""
        try:
            names = os.listdir(self._folder)
        except OSError:  # usually because nobody made the folder
            return Request(0)
        taken = Request(0)
        for name in names:
            path = self._folder / name
            if name in _FILES and not (path.is_file() and path.stat().st_size):
                try:
                    path.unlink()
                except OSError:  # withdrawn, or still open in its writer
                    continue
                taken |= _FILES[name]
            elif not name.startswith(".") and name not in self._strangers:
                self._strangers.add(name)
                known = ", ".join(_FILES)
                logger.warning("%s is not a request; requests are empty files: %s.", path, known)
        return taken

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """Note the request; at the second request to stop, stop at once."""
        request, now = _SIGNALS[number], time.monotonic()
        self._by_signal |= request
        if request is not Request.STOP:
            return
        if self._stopping_since is None:
            self._stopping_since = now
            if self._accelerator.is_main_process:  # logging may be in the middle of a line
                with suppress(OSError):  # the terminal is gone
                    os.write(2, _STOPPING)
        elif now - self._stopping_since >= _AGAIN_S and number != _HANGUP:
            raise KeyboardInterrupt
