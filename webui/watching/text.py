"""Sentences and HTML about a training; input from people is escaped."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from webui.engine import process
from webui.engine.job import ENDED, RESUMABLE, Job, Kind, Status
from webui.engine.options import GONE, OPTIONS, lacks_scores
from webui.engine.progress import CONFIG, CONTROL, Progress
from webui.page import term_list

PREPARING, TRAINING, FINISHING = "Preparing", "Training", "Writing the result"
_NO_SCORES = (
    "<p>It has no scores: the models that measure them are not on this machine and cannot be "
    "downloaded. The training is the same without them.</p>"
)
_LOG_LINES, _LOG_BYTES = 200, 2**16


def listens(job: Job) -> bool:
    """Return whether a training accepts requests: it does while it takes steps."""
    return job.status is Status.RUNNING and (job.folder / CONTROL).is_dir()


def state(job: Job) -> str:
    """Return the state of a job in a few words."""
    if job.status is not Status.RUNNING or listens(job):
        return TRAINING if job.status is Status.RUNNING else job.status.capitalize()
    loaded = process.written_since_start(job.folder, job.folder / CONFIG)
    return FINISHING if loaded else PREPARING


def listed(job: Job, reached: tuple[int, int] | None, place: int | None, now: float) -> str:
    """Return the line of a job in the list, as plain text.

    Args:
        job: The job.
        reached: Current step and number of steps.
        place: Place in the queue of all jobs, from 1.
        now: Seconds since 1970.
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
    """Return how many jobs are ahead of a queued one, without details of other people's."""
    ahead = [*active, *queue[: [each.id for each in queue].index(job.id)]]
    if not ahead:
        return "It starts next."
    own = sum(each.owner == job.owner for each in ahead)
    kind = "training" if all(each.kind is Kind.TRAIN for each in ahead) else "job"
    counts = [(own, "of yours"), (len(ahead) - own, "of others")]
    parts = [f"{count} {_plural(kind, count)} {whose}" for count, whose in counts if count]
    scored = [each.name for each in ahead if each.kind is Kind.SCORE and each.owner == job.owner]
    scorings = f" You also score {' and '.join(scored)}; see the Score tab." if scored else ""
    return f"{' and '.join(parts)} {'is' if len(ahead) == 1 else 'are'} ahead of it.{scorings}"


def headline(job: Job, checkpoints: Mapping[int, Path], waits: str) -> str:
    """Return name, state and advice as HTML; it changes with the state, not with each step.

    Args:
        job: The job.
        checkpoints: Folders of its checkpoints, by step.
        waits: What a queued job waits for.
    """
    return (
        f"<h2>{escape(job.name)}</h2><p><strong>{state(job)}.</strong> "
        f"{escape(_advice(job, checkpoints, waits))}</p>{_NO_SCORES * lacks_scores(job.folder)}"
    )


def facts(job: Job, progress: Progress) -> str:
    """Return the progress bar and the numbers of a run as HTML."""
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
    if not progress.steps:  # the options cannot be read
        return f'<p class="last-line">{escape(progress.last_line)}</p>'
    bar = f'<progress aria-label="Steps" max="{progress.steps}" value="{progress.step}"></progress>'
    last = ""
    if job.status is Status.RUNNING and not listens(job):
        last = f'<p class="last-line">{escape(progress.last_line)}</p>'
    return f"{bar}{term_list(terms)}{last}"


def log_tail(folder: Path) -> str:
    """Return the end of a run's log as HTML."""
    try:
        with (folder / process.LOG).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        text = ""
    # A progress bar overwrites its line; keep its last state.
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    tail = "\n".join(lines[-_LOG_LINES:]).strip()
    return f'<pre class="log" tabindex="0"><code>{escape(tail) or "Nothing yet."}</code></pre>'


def duration(seconds: float) -> str:
    """Return a duration in words, such as 1 h 5 min."""
    if seconds < 60:
        return f"{max(0, round(seconds))} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    return f"{minutes // 60} h {minutes % 60} min"


def ago(seconds: float) -> str:
    """Return how long ago something was, such as 2 hours ago."""
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= unit:
            count = int(seconds // unit)
            return f"{count} {_plural(name, count)} ago"
    return "just now"


def rate(steps_per_s: float) -> str:
    """Return the speed as it/s or s/it, whichever is at least 1."""
    return f"{steps_per_s:.1f} it/s" if steps_per_s >= 1 else f"{1 / steps_per_s:.1f} s/it"


def memory(mib: float) -> str:
    """Return an amount of memory with its unit."""
    return f"{mib:.0f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def _advice(job: Job, checkpoints: Mapping[int, Path], waits: str) -> str:
    if job.status is Status.QUEUED:
        return waits
    if job.status is Status.STOPPING:
        if job.wanted is Status.CANCELLED:
            return "It ends after this step; cancel again to end it now."
        return "It stops after this step, with a checkpoint to resume from."
    if job.status is Status.FINISHED:
        return "Play with it, or keep it as it was at an earlier step."
    if job.status is Status.CANCELLED:
        return "You can still look at its pictures, keep a checkpoint, or remove it."
    if job.status in RESUMABLE and not (job.folder / OPTIONS).is_file():
        return GONE
    if job.status in RESUMABLE:
        where = f"continues after step {max(checkpoints)}" if checkpoints else "starts from step 1"
        cure = "Fix this first if you can; the log has details. " * (job.status is Status.FAILED)
        return f"{job.message} {cure}Resume {where}.".strip()
    return ""


def _plural(name: str, count: int) -> str:
    return name if count == 1 else f"{name}s"


def _ordinal(number: int) -> str:
    last = 0 if number % 100 in (11, 12, 13) else number % 10
    ending = {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    return f"{number}{ending}"
