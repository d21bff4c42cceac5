"""Errors that people can fix, collected where several are found at once."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class LoLDUError(Exception):
    """A mistake in an option, a file or the environment.

    The message is a sentence for people: what is wrong, where, and what to do. Commands print it
    without a traceback.
    """


class ConceptError(LoLDUError, ValueError):
    """A concept that cannot be used here; a `ValueError` for callers of the library."""


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
        except LoLDUError as error:
            self._sentences += str(error).splitlines()

    def tell(self) -> None:
        """Raise what was collected.

        Raises:
            LoLDUError: when there was anything.
        """
        if self._sentences:
            raise LoLDUError("\n".join(self._sentences))


class Stopped(Exception):
    """The run was asked to stop, and did, with a checkpoint to continue from."""
