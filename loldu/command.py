"""Run a command: errors as one sentence, exit statuses, and a quiet end when a pipe closes."""

import os
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path

from loldu.errors import LoLDUError, Stopped

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells report it."""


def program(module: str) -> str:
    """Return the command as it was typed, for help texts: `loldu-train` or `python -m trainer`."""
    name = Path(sys.argv[0]).stem
    return name if name.startswith("loldu") else f"python -m {module}"


@contextmanager
def extra(name: str) -> Generator[None]:
    """Name the extra of this package whose imports inside the block fail.

    Raises:
        LoLDUError: If a package is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise LoLDUError(
            f"This command needs the package {error.name}: pip install 'loldu[{name}]'."
        ) from error


def attempt(command: Callable[[], object], interrupted: str = "Stopped.") -> tuple[int, str]:
    """Run a command and return its exit status and a sentence for people, "" after success.

    Args:
        command: The command; it raises LoLDUError for a mistake that people can fix.
        interrupted: The sentence after Ctrl-C.

    Raises:
        BrokenPipeError: If the reader of standard output has gone; see `run_command`.
    """
    try:
        command()
    except LoLDUError as error:
        return 2, str(error)
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk, or a folder without write permission
        if error.filename is None:
            return 2, f"{error.strerror or error}."
        return 2, f"{error.filename} cannot be read or written: {error.strerror or error}."
    except UnicodeEncodeError as error:  # a name that no option gave, such as a picture's
        name = error.object[:200]
        return 2, f"{name!r} cannot be written as {error.encoding}; use UTF-8 names and locale."
    except Stopped:
        return INTERRUPTED, ""
    except KeyboardInterrupt:
        return INTERRUPTED, interrupted
    return 0, ""


def run_command(command: Callable[[], object], interrupted: str = "Stopped.") -> int:
    """Run a command, write its sentence to stderr if it fails, and return its exit status.

    A closed pipe, as in `loldu inspect FILE | head -1`, ends the command without a message.

    Args:
        command: The command; it raises LoLDUError for a mistake that people can fix.
        interrupted: The sentence after Ctrl-C.
    """
    return report(lambda: attempt(command, interrupted))


def report(run: Callable[[], tuple[int, str]]) -> int:
    """Write the sentence of an outcome to stderr, if there is one, and return the exit status.

    Args:
        run: Returns the exit status and the sentence, as `attempt` does.
    """
    try:
        try:
            status, sentence = run()
        finally:
            sys.stdout.flush()  # --help ends by SystemExit, with text still in the buffer
    except BrokenPipeError:
        # Python flushes standard output once more at exit, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    if sentence:
        sys.stderr.write(f"{sentence}\n")
    return status
