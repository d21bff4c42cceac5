"""Stages of a run before its first step: sentences of its log, and how to read them back."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass

logger = logging.getLogger(__name__)

STARTING = "Starting"
LOADING = "Loading the base"
CLASS_PICTURES = "Drawing class pictures"
ENCODING = "Encoding the pictures"
BASE_PICTURES = "Drawing pictures with the base"
_NAMES = "|".join((STARTING, LOADING, CLASS_PICTURES, ENCODING, BASE_PICTURES))
_SENTENCE = re.compile(rf"({_NAMES})(?:: (\d{{1,9}}) of (\d{{1,9}}))?\.")


@dataclass(frozen=True)
class Stage:
    """A stage of a run before its first step.

    Attributes:
        name: One of the names above.
        done: How many pictures are done.
        total: How many there are, or 0 if the stage does not count.
    """

    name: str
    done: int = 0
    total: int = 0


def announce(name: str, done: int = 0, total: int = 0) -> None:
    """Log that a stage began, or how far it is."""
    logger.info("%s%s.", name, f": {done} of {total}" if total else "")


def last_stage(lines: Iterable[str]) -> Stage | None:
    """Return the last stage that lines of a log announce, or None."""
    found = [match for line in lines if (match := _SENTENCE.fullmatch(line.strip()))]
    if not found:
        return None
    name, done, total = found[-1].groups()
    return Stage(name, int(done or 0), int(total or 0))
