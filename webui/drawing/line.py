"""Who draws next: there is one model, and several people."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_POLL_S = 0.2


class Cancelled(Exception):
    """What was to be drawn is no longer wanted."""


class Line:
    """First come, first served; who is told to stop leaves the line."""

    def __init__(self) -> None:
        """Nobody is there yet."""
        self._changed = threading.Condition()
        self._places: list[threading.Event] = []

    @contextmanager
    def turn(self, stop: threading.Event, waiting: Callable[[int], None]) -> Iterator[None]:
        """Wait for the others who were there before, and keep those who come later waiting.

        Args:
            stop: when it is set, the wait is over.
            waiting: called with how many are before, whenever that changes.

        Raises:
            Cancelled: `stop` was set before it was their turn.
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
        told = 0
        with self._changed:
            while before := self._places.index(stop):
                if before != told:
                    waiting(before)
                    told = before
                self._changed.wait(_POLL_S)
                if stop.is_set():
                    raise Cancelled
        if stop.is_set():
            raise Cancelled
