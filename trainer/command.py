"""A command line of the trainer: parse it, look at the pictures or train, and return the status."""

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from loldu.command import attempt, report
from loldu.errors import LoLDUError
from trainer.options.config import Config
from trainer.options.preset import parse

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Train = Callable[[Config], None]


def run(argv: Sequence[str], train: Train) -> int:
    """Train, and return the exit status: 2 after a mistake, 130 after a stop."""
    return report(lambda: outcome(argv, train))


def outcome(argv: Sequence[str], train: Train) -> tuple[int, str]:
    """Train, and return the exit status and a sentence for people, "" after success.

    Args:
        argv: The flags.
        train: Trains; the callers import it, because it loads torch.
    """
    logging.basicConfig(format="%(message)s")
    for package in ("loldu", "trainer"):
        logging.getLogger(package).setLevel(logging.INFO)

    def run() -> None:
        config = parse(argv)
        if config.run.doctor_only:
            from trainer.training.instances import inspect_only

            inspect_only(config)
            return
        from trainer.training.memory import out_of_memory_in_one_sentence

        with out_of_memory_in_one_sentence(config), full_disk_in_one_sentence():
            train(config)

    return attempt(run, "Stopped; --resume latest continues from the last checkpoint.")


@contextmanager
def full_disk_in_one_sentence() -> Iterator[None]:
    """Report a file that the disk has no room for, and how to go on.

    Raises:
        LoLDUError: If the disk is full, or the file exceeds a limit of the system.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise LoLDUError(
            f"{error.filename or 'A file'} could not be written ({error.strerror}); free some "
            "space, then continue with --resume latest."
        ) from error
