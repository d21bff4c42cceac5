"""Sentences and HTML about a training; input from people is escaped."""

import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from trainer.training.stages import STARTING, Stage
from webui.engine import process
from webui.engine.job import ENDED, RESUMABLE, Job, Kind, Status
from webui.engine.options import GONE, OPTIONS, lacks_scores
from webui.engine.progress import CONFIG, CONTROL, Progress
from webui.page import term_list

PREPARING, TRAINING, FINISHING = "Preparing", "Training", "Writing the result"
SCORING = "Scoring"
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
    if job.kind is Kind.SCORE:
        return SCORING
    loaded = process.written_since_start(job.folder, job.folder / CONFIG)
    return FINISHING if loaded else PREPARING


def listed(job: Job, reached: tuple[int, int] | None, place: int | None, now: float) -> str:
    """Return the line of a job in the list, as plain text.

    Args:
        job: The job.
        reached: How many steps of a training, or pictures of a scoring, are done, and how many
            there are.
        place: Place in the queue of all jobs, from 1.
        now: Seconds since 1970.
    """
    parts = [state(job)]
    if place is not None:
        parts[0] += f", {_ordinal(place)} to start"
    if reached is not None:
        (done, total), unit = reached, _unit(job)
        parts.append(f"{done} of {total} {unit}" if done else f"{total} {unit}")
    if job.status in ENDED:
        parts.append(ago(now - (job.ended or now)))
    elif job.status is Status.QUEUED:
        parts.append(f"asked for {ago(now - job.created)}")
    else:
        parts.append(f"started {ago(now - (job.started or now))}")
    return f"{titled(job)} · {' · '.join(parts)}"


def titled(job: Job) -> str:
    """Return the name of a job; a scoring has the name of its concept."""
    return f"Scores of {job.name}" if job.kind is Kind.SCORE else job.name


def before(job: Job, queue: Sequence[Job], active: Sequence[Job]) -> str:
    """Return how many jobs are ahead of a queued one, without details of other people's."""
    ahead = [*active, *queue[: [each.id for each in queue].index(job.id)]]
    if not ahead:
        return "It starts next."
    own = sum(each.owner == job.owner for each in ahead)
    kind = "training" if all(each.kind is Kind.TRAIN for each in ahead) else "job"
    counts = [(own, "of yours"), (len(ahead) - own, "of others")]
    parts = [f"{count} {_plural(kind, count)} {whose}" for count, whose in counts if count]
    return f"{' and '.join(parts)} {'is' if len(ahead) == 1 else 'are'} ahead of it."


def headline(job: Job, checkpoints: Mapping[int, Path], waits: str) -> str:
    """Return name, state and advice as HTML; it changes with the state, not with each step.

    Args:
        job: The job.
        checkpoints: Folders of its checkpoints, by step.
        waits: What a queued job waits for.
    """
    return (
        f"<h2>{escape(titled(job))}</h2><p><strong>{state(job)}.</strong> "
        f"{escape(_advice(job, checkpoints, waits))}</p>{_NO_SCORES * lacks_scores(job.folder)}"
    )


def facts(job: Job, progress: Progress, reached: tuple[int, int], now: float) -> str:
    """Return the bar and the numbers of a job as HTML.

    Args:
        job: The job.
        progress: Progress of its run.
        reached: How many steps or pictures are done, and how many there are.
        now: Seconds since 1970.
    """
    done, total = reached
    if not total:  # the options cannot be read
        return f'<p class="last-line">{escape(progress.last_line)}</p>'
    runs, so_far = job.status is Status.RUNNING, duration(now - (job.started or now))
    prepares = runs and job.kind is Kind.TRAIN and state(job) != FINISHING
    prepares = prepares and not (listens(job) and done)
    stage = progress.stage or Stage(STARTING)
    if prepares and not done:
        return _preparation(stage, so_far)
    terms = {_unit(job).capitalize(): f"{done:,} of {total:,}"}
    if runs:
        if progress.steps_per_s:
            terms["Speed"] = rate(progress.steps_per_s)
        if progress.seconds_left is not None and listens(job):
            terms["Time left"] = f"about {duration(progress.seconds_left)}"
        if prepares:  # a resumed training: its steps are done, and stay in sight
            terms["Now"] = f"{stage.name} {_count(stage)}".strip()
        if job.kind is Kind.SCORE or prepares:
            terms["So far"] = so_far
    elif job.started and job.ended:
        terms["Took"] = duration(job.ended - job.started)
    return f"{_bar(_unit(job).capitalize(), done, total)}{term_list(terms)}"


def machine(job: Job, progress: Progress) -> str:
    """Return memory and device of a job as HTML."""
    memory_ = memory(progress.memory_mib) if progress.memory_mib is not None else ""
    return term_list({"Memory": memory_, "Device": job.device or ""})


def _preparation(stage: Stage, so_far: str) -> str:
    """Return the bar before the first step; without a count it only shows that something runs."""
    terms = {stage.name: _count(stage)} if stage.total else {"Now": stage.name}
    terms["So far"] = so_far
    return f"{_bar('Preparation', stage.done, stage.total)}{term_list(terms)}"


def _count(stage: Stage) -> str:
    return f"{stage.done} of {stage.total}" if stage.total else ""


def _bar(label: str, done: int, total: int) -> str:
    values = f' max="{total}" value="{done}"' if total else ""
    return f'<progress aria-label="{label}"{values}></progress>'


def _unit(job: Job) -> str:
    return "pictures" if job.kind is Kind.SCORE else "steps"


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
            return "It is removed when it has stopped; Remove again ends it at once."
        return "It stops after this step, and can be resumed."
    if job.status is Status.FINISHED:
        if job.kind is Kind.SCORE:
            return "Its report is on the Score tab."
        return "Play with it, or keep an earlier step."
    if job.status in RESUMABLE and not (job.folder / OPTIONS).is_file():
        return GONE
    if job.status in RESUMABLE:
        where = f"continues after step {max(checkpoints)}" if checkpoints else "starts from step 1"
        if job.kind is Kind.SCORE:
            where = "draws only what is missing"
        cure = "Fix this first if you can; the log has details. " * (job.status is Status.FAILED)
        return f"{job.message} {cure}Resume {where}.".strip()
    return ""


def _plural(name: str, count: int) -> str:
    return name if count == 1 else f"{name}s"


def _ordinal(number: int) -> str:
    last = 0 if number % 100 in (11, 12, 13) else number % 10
    ending = {1: "st", 2: "nd", 3: "rd"}.get(last, "th")
    return f"{number}{ending}"
