"""Jobs of the stand-in for the trainer, and waiting for other processes."""

import json
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
    def ticked() -> object:
        dispatcher.tick()
        return true()

    patiently(ticked)


def has(jobs: Jobs, job: Job, *statuses: Status) -> Callable[[], bool]:
    return lambda: jobs.get(job.id).status in statuses


def submit(jobs: Jobs, prompt: str = "trains", steps: int = 1, owner: str = "ann") -> Job:
    options = {
        "instance_data_dir": "pictures",
        "instance_prompt": prompt,
        "max_train_steps": steps,
    }
    return jobs.submit(prompt, owner, options)


def steps(job: Job) -> list[int]:
    path = job.folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line)["step"] for line in lines]


def starts(job: Job) -> list[int]:
    """Return the pids of all processes that trained a job."""
    path = job.folder / "starts.txt"
    return [int(line) for line in path.read_text().split()] if path.exists() else []
