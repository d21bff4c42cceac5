"""A job as the studio knows it: its states, its name, and whose turn it is."""

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from loldu.errors import LoLDUError

_NAME_LENGTH = 100


class Kind(StrEnum):
    """What a job does."""

    TRAIN = "train"
    SCORE = "score"


class Status(StrEnum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    STOPPING = "stopping"
    """It was asked to stop, to be resumed or not, and still runs."""
    FINISHED = "finished"
    STOPPED = "stopped"
    """On request; it can be resumed."""
    INTERRUPTED = "interrupted"
    """Its process died; it can be resumed."""
    FAILED = "failed"
    """The message says why; it can be tried again."""
    CANCELLED = "cancelled"


ACTIVE = frozenset({Status.RUNNING, Status.STOPPING})
RESUMABLE = frozenset({Status.STOPPED, Status.INTERRUPTED, Status.FAILED})
ENDED = RESUMABLE | {Status.FINISHED, Status.CANCELLED}


@dataclass(frozen=True)
class Job:
    """A job as it was when it was looked up; times in seconds since 1970.

    `concept` is the id in the library of what is scored.
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
    """A name as it is kept: one line that can be printed.

    Raises:
        LoLDUError: nothing of it is left.
    """
    printable = "".join(letter if letter.isprintable() else " " for letter in name)
    name = re.sub(r"\s+", " ", printable).strip()[:_NAME_LENGTH]
    if not name:
        raise LoLDUError("The training has no name: give it one.")
    return name


def in_turns(queued: Sequence[Job], turns: Mapping[str, int]) -> tuple[Job, ...]:
    """The order of starts: every owner's jobs as they were asked for, and the owners in turn.

    Args:
        queued: as they were asked for.
        turns: by owner, the latest of all their starts, counted over all owners.
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
