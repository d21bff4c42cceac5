"""The queue for the model: one drawing at a time."""

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

_POLL_S = 0.2


class Cancelled(Exception):
    """The drawing was stopped."""


class DrawingQueue:
    """First come, first served; cancelled requests leave the queue."""

    def __init__(self) -> None:
        """Begin with an empty queue."""
        self._changed = threading.Condition()
        self._places: list[threading.Event] = []

    @contextmanager
    def turn(self, stop: threading.Event, waiting: Callable[[int], None]) -> Generator[None]:
        """Wait for the turn, and hold it until the context ends.

        Args:
            stop: Cancels the wait when it is set.
            waiting: Called with the number of drawings ahead, whenever it changes.

        Raises:
            Cancelled: If `stop` is set before the turn comes.
        """
        with self._changed:
            self._places.append(stop)
        try:
            self._wait(stop, waiting)
            yield
        finally:
            with self._changed:
                self._places.remove(stop)
                self._changed.notify_all()

    def _wait(self, stop: threading.Event, waiting: Callable[[int], None]) -> None:
        reported = 0
        with self._changed:
            while before := self._places.index(stop):
                if before != reported:
                    waiting(before)
                    reported = before
                self._changed.wait(_POLL_S)
                if stop.is_set():
                    raise Cancelled
        if stop.is_set():
            raise Cancelled
