"""A job: its states, its name and the order of the queue."""

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from loldu.errors import LoLDUError

_NAME_LENGTH = 100


class Kind(StrEnum):
    """Kind of a job."""

    TRAIN = "train"
    SCORE = "score"


class Status(StrEnum):
    """State of a job."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    """Asked to stop; its process still runs."""
    FINISHED = "finished"
    STOPPED = "stopped"
    """Stopped on request; it can be resumed."""
    INTERRUPTED = "interrupted"
    """Its process was killed; it can be resumed."""
    FAILED = "failed"
    """Failed, with the reason in `message`; it can be resumed."""
    CANCELLED = "cancelled"
    """As `wanted`: to be removed when it has ended. Earlier versions ended jobs with it."""


ACTIVE = frozenset({Status.RUNNING, Status.STOPPING})
RESUMABLE = frozenset({Status.STOPPED, Status.INTERRUPTED, Status.FAILED, Status.CANCELLED})
ENDED = RESUMABLE | {Status.FINISHED}


@dataclass(frozen=True)
class Job:
    """A snapshot of a job; times are seconds since 1970.

    `concept` is the library id of the concept that a scoring job scores.
    """

    id: str
    kind: Kind
    name: str
    owner: str
    concept: str | None
    status: Status
    wanted: Status | None
    device: str | None
    message: str
    place: int
    turn: int | None
    created: float
    started: float | None
    ended: float | None
    removed: float | None
    folder: Path


def shown(name: str) -> str:
    """Return a name as one printable line of at most 100 characters.

    Raises:
        LoLDUError: If nothing is left of it.
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in name)
    name = re.sub(r"\s+", " ", printable).strip()[:_NAME_LENGTH]
    if not name:
        raise LoLDUError("The name is empty: enter a name.")
    return name


def in_turns(queued: Sequence[Job], turns: Mapping[str, int]) -> tuple[Job, ...]:
    """Return jobs in the order of their starts: owners take turns, each with their oldest job.

    Args:
        queued: Queued jobs, oldest first.
        turns: Number of the last start of each owner, counted over all owners.
    """
    waiting: dict[str, deque[Job]] = {}
    for job in queued:
        waiting.setdefault(job.owner, deque()).append(job)
    last = dict(turns)
    order: list[Job] = []
    while waiting:
        owner = min(waiting, key=lambda each: (last.get(each, 0), waiting[each][0].place))
        order.append(waiting[owner].popleft())
        last[owner] = max(last.values(), default=0) + 1
        if not waiting[owner]:
            del waiting[owner]
    return tuple(order)
