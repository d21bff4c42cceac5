"""How a run ends before its time: mistakes, told one by one or together, and being asked to."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class TrainerError(Exception):
    """A mistake in flags, files or environment, told in one sentence without a traceback."""


def hint(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """What an unknown name could have meant.

    Args:
        name: as it was written.
        known: the names there are.
        otherwise: what to say where none is near; to choose from the known ones, unless given.
    """
    names = list(known)
    if near := difflib.get_close_matches(name, names, n=1):
        return f"perhaps you meant {near[0]}"
    return otherwise or f"choose from {', '.join(names)}"


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
