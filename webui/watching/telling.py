"""How the page tells of a training: in words, and in HTML where what people say stays text."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from webui.engine import process
from webui.engine.job import ENDED, RESUMABLE, Job, Kind, Status
from webui.engine.progress import CONFIG, CONTROL, Progress

PREPARING, TRAINING, FINISHING = "Preparing", "Training", "Writing the result"
_LOG_LINES, _LOG_BYTES = 200, 2**16


def listens(job: Job) -> bool:
    """Whether a training takes requests, as it does while it takes steps."""
    return job.status is Status.RUNNING and (job.folder / CONTROL).is_dir()


def state(job: Job) -> str:
    """Where a job is, in a word or a few."""
    if job.status is not Status.RUNNING or listens(job):
        return TRAINING if job.status is Status.RUNNING else job.status.capitalize()
    loaded = process.written_since_start(job.folder, job.folder / CONFIG)
    return FINISHING if loaded else PREPARING


def listed(job: Job, reached: tuple[int, int] | None, place: int | None, now: float) -> str:
    """A job in a line of the list, as plain text.

    Args:
        job: the job.
        reached: its step, and of how many.
        place: in the queue of all, from 1.
        now: in seconds since 1970.
    """
    parts = [state(job)]
    if place is not None:
        parts[0] += f", {_ordinal(place)} to start"
    if reached is not None:
        step, steps = reached
        parts.append(f"{step} of {steps} steps" if step else f"{steps} steps")
    if job.status in ENDED:
        parts.append(ago(now - (job.ended or now)))
    elif job.status is Status.QUEUED:
        parts.append(f"asked for {ago(now - job.created)}")
    else:
        parts.append(f"started {ago(now - (job.started or now))}")
    return f"{job.name} · {' · '.join(parts)}"


def before(job: Job, queue: Sequence[Job], active: Sequence[Job]) -> str:
    """What comes before a queued job: of others, nothing but how many."""
    ahead = [*active, *queue[: [each.id for each in queue].index(job.id)]]
    if not ahead:
        return "It is the next to start."
    own = sum(each.owner == job.owner for each in ahead)
    kind = "training" if all(each.kind is Kind.TRAIN for each in ahead) else "job"
    counts = [(own, "of yours"), (len(ahead) - own, "of others")]
    parts = [f"{count} {_plural(kind, count)} {whose}" for count, whose in counts if count]
    return f"{' and '.join(parts)} {'is' if len(ahead) == 1 else 'are'} before it."


def headline(job: Job, checkpoints: Mapping[int, Path], waits: str) -> str:
    """Name, state and what to do, as HTML; it changes when the state does, not with every step.

    Args:
        job: the job.
        checkpoints: of the job, by step.
        waits: what a queued one waits for.
    """
    return (
        f"<h2>{escape(job.name)}</h2><p><strong>{state(job)}.</strong> "
        f"{escape(_advice(job, checkpoints, waits))}</p>"
    )


def facts(job: Job, progress: Progress) -> str:
    """The bar and the numbers of a run, as HTML."""
    terms = {"Step": f"{progress.step:,} of {progress.steps:,}"}
    if job.status is Status.RUNNING:
        if progress.steps_per_s:
            terms["Speed"] = rate(progress.steps_per_s)
        if progress.seconds_left is not None and listens(job):
            terms["Time left"] = f"about {duration(progress.seconds_left)}"
    elif job.started and job.ended:
        terms["Took"] = duration(job.ended - job.started)
    if progress.memory_mib is not None:
        terms["Memory"] = memory(progress.memory_mib)
    if job.device:
        terms["Device"] = job.device
    pairs = "".join(
        f"<div><dt>{term}</dt><dd>{escape(told)}</dd></div>" for term, told in terms.items()
    )
    if not progress.steps:  # not even the options are there to be read
        return f'<p class="last-line">{escape(progress.last_line)}</p>'
    bar = f'<progress aria-label="Steps" max="{progress.steps}" value="{progress.step}"></progress>'
    last = ""
    if job.status is Status.RUNNING and not listens(job):
        last = f'<p class="last-line">{escape(progress.last_line)}</p>'
    return f'{bar}<dl class="facts">{pairs}</dl>{last}'


def log_tail(folder: Path) -> str:
    """The end of a run's log, as HTML."""
    try:
        with (folder / process.LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    # Bars begin their lines anew, and only what they came to is of interest.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    tail = "\n".join(lines[-_LOG_LINES:]).strip()
    return f'<pre class="log" tabindex="0"><code>{escape(tail) or "Nothing yet."}</code></pre>'


def duration(seconds: float) -> str:
    """A time as people say it."""
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def ago(seconds: float) -> str:
    """How long something is past."""
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{count} {_plural(name, count)} ago"
    return "just now"


def rate(steps_per_s: float) -> str:
    """The speed of a run, in the larger of the two ways to say it."""
    return f"{steps_per_s:.1f} it/s" if steps_per_s >= 1 else f"{1 / steps_per_s:.1f} s/it"


def memory(mib: float) -> str:
    """What was held at most."""
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def _advice(job: Job, checkpoints: Mapping[int, Path], waits: str) -> str:
    if job.status is Status.QUEUED:
        return waits
    if job.status is Status.STOPPING:
        if job.wanted is Status.CANCELLED:
            return "It ends for good after this step; cancel again to end it without waiting."
        return "It stops after this step, with a checkpoint to resume from."
    if job.status is Status.FINISHED:
        return "Play with it, or keep it as it was at an earlier step."
    if job.status is Status.CANCELLED:
        return "What it left can be looked at, kept or removed."
    if job.status in RESUMABLE:
        where = f"goes on after step {max(checkpoints)}" if checkpoints else "starts from step 1"
        cure = "Put that right first if you can; the log tells more. " * (
            job.status is Status.FAILED
        )
        return f"{job.message} {cure}Resume {where}.".strip()
    return ""


def _plural(name: str, count: int) -> str:
    return name if count == 1 else f"{name}s"


def _ordinal(number: int) -> str:
    last = 0 if number % 100 in (11, 12, 13) else number % 10
    ending = {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    return f"{number}{ending}"
