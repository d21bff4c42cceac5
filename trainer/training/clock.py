"""How long a run has trained."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch


class Clock:
    """Seconds of training, over all starts of a run.

    They are those of its steps: gradients, updates and their lines of log. Loading, validation
    pictures, scores and checkpoints are not counted, nor steps that a kill has lost.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        """Go on from what an earlier start has counted."""
        self._started = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Counted so far."""
        return time.perf_counter() - self._started

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count for as long as the block lasts."""
        if torch.cuda.is_available():  # the steps that it was given may not be done yet
            torch.cuda.synchronize()
        before = self.seconds
        try:
            yield
        finally:
            self._started = time.perf_counter() - before
