"""The content of the Progress tab, and the parts of it that a browser lacks."""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import gradio as gr

from loldu.errors import LoLDUError
from webui.backend import Backend
from webui.engine.job import ACTIVE, RESUMABLE, Job, Kind, Status
from webui.engine.options import OPTIONS, asked
from webui.engine.progress import Progress
from webui.library.scoring import drawn
from webui.watching import text
from webui.watching.charts import Chart, charts, table_of_step
from webui.watching.story import Shown, film, pair, prompts

_TICK_S, _QUEUE_TICK_S = 2, 5
_NOTHING = Progress(0, 0, (), {}, None, None, None, (), {}, {}, None, "")


@dataclass
class Look:
    """State of the tab in one browser; it is lost when the server restarts.

    Attributes:
        step: Step of the frame that is shown large; None follows the newest.
        prompt: Index of the prompt of all frames.
        log: Whether the log is unfolded.
        open: Whether the tab is open; a new server assumes so.
        shown: Id of the job that was sent last.
        sent: Values that the browser has, by part of the tab.
    """

    step: int | None = None
    prompt: int = 0
    log: bool = False
    open: bool = True
    shown: str | None = None
    sent: dict[str, Any] = field(default_factory=dict)

    def at(self, job_id: str | None) -> None:
        """Forget the choices that were made for the last job, if this is another one."""
        if job_id == self.shown:
            return
        if self.shown is not None:
            self.step, self.prompt = None, 0
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
            updates.append(update.update() if isinstance(update, Choices | Chart) else update)
        return updates


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
        shown["removed"] = removed.id if removed else ""
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

    def _own(self, owner: str, *, removed: bool = False) -> tuple[Job, ...]:
        return self._jobs.list(owner, removed=removed)

    # -------------------------------------------------------------------------------- the list

    def _list(self, job: Job, owner: str, look: Look) -> dict[str, Any]:
        own, now = self._own(owner), time.time()
        places = {each.id: place for place, each in enumerate(self._jobs.queue(), 1)}
        choices = tuple(
            (text.listed(each, self._reached(each), places.get(each.id), now), each.id)
            for each in own[::-1]
        )
        waiting = [each.id for each in own if each.status is Status.QUEUED]
        label = f"Remove the {len(waiting)} that wait"
        return {
            "list": Choices(choices, None if "list" in look.sent else job.id),
            "waiting": " ".join(waiting),
            "clear": gr.update(value=label, visible=len(waiting) > 1),
        }

    def _reached(self, job: Job) -> tuple[int, int] | None:
        return self._reach(job) if job.status in ACTIVE else self._at_rest(job)

    def _reach(self, job: Job) -> tuple[int, int] | None:
        try:
            return _done(job, self._jobs.progress(job.id))
        except LoLDUError:  # its folder is gone; still show the others
            return None

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
        step = _nearest(look.step, progress.pictures) if look.step is not None else newest
        of_training = asked(job.folder)
        if look.prompt >= len(of_training.prompts):
            look.prompt = 0
        seen = of_training, progress, Shown(step, look.prompt)
        trains = job.kind is Kind.TRAIN
        return {
            "headline": text.headline(job, progress.checkpoints, waits),
            "facts": text.facts(job, progress, _done(job, progress), time.time()),
            "name": job.name,
            "film": film(*seen, ends=job.status is Status.FINISHED) if trains else "",
            "prompts": prompts(*seen),
            "pair": pair(*seen),
            "scores": table_of_step(progress.scores, step),
            "machine": text.machine(job, progress),
            "log": text.log_tail(job.folder) if look.log else "",
            "curves": gr.update(visible=bool(progress.losses)),
            **charts(progress),
            **_buttons(job),
            **_keeping(job, progress, step),
        }


REQUESTS = ("stop", "resume", "play", "report", "frame", "remove")


def allowed(job: Job) -> frozenset[str]:
    """Return the requests that the job can take in its state."""
    able = {"remove"}
    if job.status in (Status.QUEUED, Status.RUNNING):
        able |= {"stop"}
    if text.listens(job):
        able |= {"frame"}
    if job.status in RESUMABLE and (job.folder / OPTIONS).is_file():
        able |= {"resume"}
    if job.status is Status.FINISHED:
        able |= {"play" if job.kind is Kind.TRAIN else "report"}
    return frozenset(able)


def _buttons(job: Job) -> dict[str, Any]:
    able = allowed(job)
    return {name: gr.update(visible=name in able) for name in REQUESTS}


def _keeping(job: Job, progress: Progress, step: int | None) -> dict[str, Any]:
    """Return the button that keeps the shown step, or else the saved one nearest to it."""
    steps, note = sorted(progress.checkpoints), ""
    saved = _nearest(steps[-1] if step is None and steps else step or 0, steps)
    is_result = job.status is Status.FINISHED and step == progress.step
    if is_result:
        note = f"Step {step} is the result. Your Library has it."
    elif saved is not None and step not in (None, saved):
        note = f"Step {saved} is the nearest that is saved."
    keeps = saved is not None and not is_result
    return {"keep": gr.update(value=f"Keep step {saved}", visible=keeps), "note": note}


def _done(job: Job, progress: Progress) -> tuple[int, int]:
    """Return how many steps or pictures are done, and how many there are."""
    return drawn(job) if job.kind is Kind.SCORE else (progress.step, progress.steps)


def _nearest(step: int, steps: Iterable[int]) -> int | None:
    return min(sorted(steps), key=lambda each: abs(each - step), default=None)
