"""How a run ends before its time: mistakes, told one by one or together, and being asked to."""

from collections.abc import Iterator
from contextlib import contextmanager


class TrainerError(Exception):
    """A mistake in flags, files or environment, told in one sentence without a traceback."""


class Mistakes:
    """Mistakes that are told together, a sentence a line, and not one at each start."""

    def __init__(self) -> None:
        """None yet."""
        self._sentences: list[str] = []

    @contextmanager
    def collected(self) -> Iterator[None]:
        """Keep a mistake of the block for later; the rest of the block is skipped."""
        try:
            yield
        except TrainerError as error:
            self._sentences += str(error).splitlines()

    def tell(self) -> None:
        """Raise what was collected.

        Raises:
            TrainerError: when there was anything.
        """
        if self._sentences:
            raise TrainerError("\n".join(self._sentences))


class Stopped(Exception):
    """The run was asked to stop, and did, with a checkpoint to continue from."""
