"""The content of the Progress tab, and the parts of it that a browser lacks."""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from loldu.errors import LoLDUError
from loldu.pictures.open import load_image
from webui.backend import Backend
from webui.engine.job import ACTIVE, ENDED, RESUMABLE, Job, Kind, Status
from webui.engine.options import OPTIONS, drawn_prompts
from webui.engine.progress import Progress
from webui.watching import text
from webui.watching.charts import Chart, charts, table_of_step

_TICK_S, _QUEUE_TICK_S = 1, 5
_NOTHING = Progress(0, 0, (), {}, None, None, None, (), {}, {}, "")


@dataclass
class Look:
    """State of the tab in one browser; it is lost when the server restarts.

    Attributes:
        step: Step whose pictures are shown; None follows the newest.
        checkpoint: Step of the checkpoint that Keep would save.
        nearest_to: Shown step for which `checkpoint` was chosen.
        log: Whether the log is unfolded.
        asked: Open question: whether to cancel `one` or `all`.
        open: Whether the tab is open; a new server assumes so.
        shown: Id of the job that was sent last.
        sent: Values that the browser has, by part of the tab.
    """

    step: int | None = None
    checkpoint: int | None = None
    nearest_to: int | None = None
    log: bool = False
    asked: str | None = None
    open: bool = True
    shown: str | None = None
    sent: dict[str, Any] = field(default_factory=dict)

    def at(self, job_id: str | None) -> None:
        """Forget the choices that were made for the last job, if this is another one."""
        if job_id == self.shown:
            return
        if self.shown is not None:
            self.step = self.checkpoint = self.nearest_to = self.asked = None
        self.shown = job_id
        self.sent.clear()

    def new(self, view: Mapping[str, Any], parts: Iterable[str]) -> list[Any]:
        """Return an update for each of `parts`; those that the browser has are skipped."""
        updates: list[Any] = []
        for part in parts:
            if part not in view or self.sent.get(part) == view[part]:
                updates.append(gr.skip())
                continue
            update = self.sent[part] = view[part]
            updates.append(
                update.update() if isinstance(update, PictureRow | Choices | Chart) else update
            )
        return updates


@dataclass(frozen=True)
class PictureRow:
    """A row of pictures: path, time of writing (a resumed run redraws them) and prompt."""

    label: str
    pictures: tuple[tuple[Path, int, str], ...]

    def update(self) -> dict[str, Any]:
        """Return the gallery update; pictures are decoded here, as their folder is not served."""
        value: list[tuple[Image.Image, str]] = []
        for path, _, prompt in self.pictures:
            with suppress(LoLDUError):  # it is gone or damaged
                value.append((load_image(path), prompt))
        return gr.update(value=value, label=self.label, visible=bool(value))


@dataclass(frozen=True)
class Choices:
    """The list of jobs; `value` is the selected one, or None to leave the selection alone."""

    choices: tuple[tuple[str, str], ...]
    value: str | None = field(compare=False)

    def update(self) -> dict[str, Any]:
        """Return the update of the list."""
        update = gr.update(choices=list(self.choices))
        return update if self.value is None else update | {"value": self.value}


class Watcher:
    """Builds the content of the tab from the jobs."""

    def __init__(self, backend: Backend) -> None:
        """Read the jobs of `backend`."""
        self._jobs = backend.jobs
        self._at_rest = lru_cache(maxsize=1024)(self._reach)

    def find(self, job_id: str | None, owner: str) -> Job | None:
        """Return the job to show: `job_id`, or else a running one, or else the newest."""
        own = self._own(owner)
        asked = [job for job in own if job.id == job_id]
        running = [job for job in own if job.status in ACTIVE]
        return next(iter([*asked, *running, *own[::-1]]), None)

    def view(self, job: Job | None, owner: str, look: Look) -> dict[str, Any]:
        """Return the parts of the tab by name; they are equal when nothing changed."""
        look.at(job.id if job else None)
        if job is None:
            shown: dict[str, Any] = {"empty": gr.update(visible=True), "on_screen": ""}
            shown |= {"full": gr.update(visible=False)}
        else:
            shown = {"empty": gr.update(visible=False), "full": gr.update(visible=True)}
            shown["on_screen"] = job.id
            shown |= self._list(job, owner, look) | self._job(job, owner, look)
        removed = self.last_removed(owner)
        shown["restore"] = gr.update(
            value=f"Bring back “{removed.name}”" if removed else "", visible=removed is not None
        )
        return shown | {"timer": self._pace(owner) if look.open else gr.update(active=False)}

    def _pace(self, owner: str) -> dict[str, Any]:
        """Return the timer's update: faster while a training runs, and never off.

        A job may be started or resumed in another window.
        """
        works = any(job.status in ACTIVE for job in self._own(owner))
        return gr.update(value=_TICK_S if works else _QUEUE_TICK_S, active=True)

    def last_removed(self, owner: str) -> Job | None:
        """Return the job that was removed last, or None."""
        return max(self._own(owner, removed=True), key=lambda job: job.removed or 0, default=None)

    def queued(self, owner: str) -> tuple[Job, ...]:
        """Return the owner's queued trainings, the next one first."""
        own = (job for job in self._jobs.queue() if job.owner == owner)
        return tuple(job for job in own if job.kind is Kind.TRAIN)

    def _own(self, owner: str, *, removed: bool = False) -> tuple[Job, ...]:
        """Return the owner's trainings; scorings belong to the Score tab."""
        return self._jobs.list(owner, Kind.TRAIN, removed=removed)

    # -------------------------------------------------------------------------------- the list

    def _list(self, job: Job, owner: str, look: Look) -> dict[str, Any]:
        own, now = self._own(owner), time.time()
        places = {each.id: place for place, each in enumerate(self._jobs.queue(), 1)}
        choices = tuple(
            (text.listed(each, self._reached(each), places.get(each.id), now), each.id)
            for each in own[::-1]
        )
        queued = len(self.queued(owner))
        return {
            "list": Choices(choices, None if "list" in look.sent else job.id),
            "cancel_all": gr.update(value=f"Cancel all queued ({queued})", visible=queued > 1),
            "ask_all": gr.update(visible=look.asked == "all" and queued > 0),
            "question_all": f"Cancel your {queued} queued trainings for good?",
        }

    def _reached(self, job: Job) -> tuple[int, int] | None:
        return self._reach(job) if job.status in ACTIVE else self._at_rest(job)

    def _reach(self, job: Job) -> tuple[int, int] | None:
        try:
            progress = self._jobs.progress(job.id)
        except LoLDUError:  # its folder is gone; still show the others
            return None
        return progress.step, progress.steps

    # --------------------------------------------------------------------------------- the job

    def _job(self, job: Job, owner: str, look: Look) -> dict[str, Any]:
        waits = ""
        if job.status is Status.QUEUED:
            everyone = self._jobs.list()
            active = [each for each in everyone if each.status in ACTIVE]
            waits = text.before(job, self._jobs.queue(), active)
        try:
            progress = self._jobs.progress(job.id)
        except LoLDUError as error:
            progress = dataclasses.replace(_NOTHING, last_line=str(error))
        newest = max(progress.pictures, default=None)
        shown = _nearest(look.step, progress.pictures) if look.step is not None else newest
        return {
            "headline": text.headline(job, progress.checkpoints, waits),
            "facts": text.facts(job, progress),
            "name": job.name,
            "scores": table_of_step(progress.scores, shown),
            "log": text.log_tail(job.folder) if look.log else "",
            **charts(progress),
            **_buttons(job, look),
            **_scrubber(progress, shown, look),
            **_rows(job, progress, shown),
            **_keeping(job, progress, shown, look),
        }


REQUESTS = ("stop", "finish", "save", "sample", "resume", "cancel", "remove", "play")


def allowed(job: Job) -> frozenset[str]:
    """Return the requests that the job can take in its state."""
    able: set[str] = set()
    if job.status in (Status.QUEUED, Status.RUNNING):
        able |= {"stop", "cancel"}
    if job.status is Status.STOPPING:
        able |= {"cancel"}
    if text.listens(job):
        able |= {"finish", "save", "sample"}
    if job.status in RESUMABLE and (job.folder / OPTIONS).is_file():
        able |= {"resume"}
    if job.status in ENDED:
        able |= {"remove"}
    if job.status is Status.FINISHED:
        able |= {"play"}
    return frozenset(able)


def _buttons(job: Job, look: Look) -> dict[str, Any]:
    able = allowed(job)
    if job.status is Status.QUEUED:
        question = "Remove it from the queue? It cannot be resumed."
    elif job.wanted is Status.CANCELLED:
        question = "It ends after this step. End it now?"
    else:
        question = "End it without a result? Its checkpoints stay."
    return {
        **{name: gr.update(interactive=name in able) for name in REQUESTS},
        "ask_one": gr.update(visible=look.asked == "one" and "cancel" in able),
        "question_one": question,
    }


def _scrubber(progress: Progress, shown: int | None, look: Look) -> dict[str, Any]:
    steps = sorted(progress.pictures)
    if shown is None or len(steps) < 2:
        return {"steps": gr.update(visible=False)}
    place = steps.index(shown) + 1
    label = f"Pictures of step {shown}, {place} of {len(steps)}"
    update: dict[str, Any] = {"maximum": len(steps), "label": label}
    if look.step is None:  # otherwise leave the slider where the person put it
        update["value"] = place
    return {
        "steps": gr.update(visible=True),
        "scrubber": gr.update(**update),
        "follow": look.step is None,
    }


def _rows(job: Job, progress: Progress, shown: int | None) -> dict[str, Any]:
    prompts = drawn_prompts(job.folder) if progress.pictures or progress.base_pictures else ()

    def row(label: str, paths: tuple[Path, ...]) -> PictureRow:
        pictures = zip(paths, prompts, strict=False)
        return PictureRow(label, tuple((path, _written(path), prompt) for path, prompt in pictures))

    of_step = progress.pictures.get(shown, ()) if shown is not None else ()
    return {"base": row("Base", progress.base_pictures), "adapted": row(f"Step {shown}", of_step)}


def _keeping(job: Job, progress: Progress, shown: int | None, look: Look) -> dict[str, Any]:
    """Return the list of checkpoints; choose the one nearest to the shown step."""
    steps = sorted(progress.checkpoints)
    if not steps:
        return {"keeping": gr.update(visible=False)}
    if look.checkpoint not in steps or look.nearest_to != shown:
        look.checkpoint = _nearest(steps[-1] if shown is None else shown, steps)
        look.nearest_to = shown
    note = ""
    if job.status is Status.FINISHED and shown == progress.step:
        note = f"Step {shown} is the result; the Library has it already."
    elif shown not in (None, look.checkpoint):
        note = f"The pictures are of step {shown}, not of this checkpoint."
    choices = [(f"step {step}", step) for step in steps]
    return {
        "keeping": gr.update(visible=True),
        "checkpoint": gr.update(choices=choices, value=look.checkpoint),
        "keep": f"Keep step {look.checkpoint}",
        "note": note,
    }


def _nearest(step: int, steps: Iterable[int]) -> int | None:
    return min(sorted(steps), key=lambda each: abs(each - step), default=None)


def _written(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
