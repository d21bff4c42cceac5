"""Errors that people can fix, and a collector that reports several at once."""

import difflib
from collections.abc import Generator, Iterable
from contextlib import contextmanager


class LoLDUError(Exception):
    """A mistake in an option, a file or the environment.

    The message says in one sentence what is wrong, where, and what to do. Commands print it
    without a traceback.
    """


class ConceptError(LoLDUError, ValueError):
    """A concept that cannot be used here; a `ValueError` for callers of the library."""


def hint(name: str, known: Iterable[str], otherwise: str | None = None) -> str:
    """Return the known name that an unknown one may have meant, as part of a sentence.

    Args:
        name: The unknown name.
        known: All known names.
        otherwise: Text if no name is close; the list of known names by default.
    """
    names = list(known)
    if near := difflib.get_close_matches(name, names, n=1):
        return f"perhaps you meant {near[0]}"
    return otherwise or f"choose from {', '.join(names)}"


class Mistakes:
    """Collects mistakes, so that people see all of them at once and not one per start."""

    def __init__(self) -> None:
        """Start without mistakes."""
        self._sentences: list[str] = []

    @contextmanager
    def collected(self) -> Generator[None]:
        """Keep the mistake that ends the block, and go on after the block."""
        try:
            yield
        except LoLDUError as error:
            self._sentences += str(error).split("\n")

    def tell(self) -> None:
        """Raise all mistakes as one error, one sentence per line.

        Raises:
            LoLDUError: If there were any.
        """
        if self._sentences:
            raise LoLDUError("\n".join(self._sentences))


class Stopped(Exception):
    """The run stopped on request, after writing a checkpoint to continue from."""
