"""For what happens in other processes."""

import time
from collections.abc import Callable

from webui.engine.dispatcher import Dispatcher
from webui.engine.job import Job, Status
from webui.engine.jobs import Jobs

PATIENCE_S = 300

MakeDispatcher = Callable[..., Dispatcher]


def patiently(true: Callable[[], object]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.005)


def ticking(dispatcher: Dispatcher, true: Callable[[], object]) -> None:
    patiently(lambda: dispatcher.tick() and true())


def has(jobs: Jobs, job: Job, *statuses: Status) -> Callable[[], bool]:
    return lambda: jobs.get(job.id).status in statuses
