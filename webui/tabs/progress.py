"""The Progress tab: a person's trainings and scorings, their story, and requests to them."""

import re
from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from loldu.errors import LoLDUError
from webui.backend import Backend, owner
from webui.engine.job import ACTIVE, Job, Status
from webui.page import (
    ANNOUNCED,
    CONCEPTS,
    PLAY,
    PROGRESS,
    QUIET,
    SCORE,
    Page,
    errors_on_page,
)
from webui.style import content_of
from webui.watching.charts import plots
from webui.watching.watcher import Look, Watcher

_AT_ONCE: dict[str, Any] = QUIET | {"queue": False}
"""Events that do not wait for drawings of other tabs; they cannot show messages."""
_TELL = "(id) => { dispatchEvent(new CustomEvent('loldu-shown', {detail: id})); }"
"""JavaScript that puts the shown job into the address of the page."""
_STORY = content_of("story.js")
Looks = Callable[[Look, str | None, gr.Request], list[Any]]
Asks = Callable[[Look, str | None, gr.Request], None]


def create_progress(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    parts: dict[str, Any] = {"timer": gr.Timer(1, active=False)}
    # Unlike a gr.State, they are sent by the browser: they hold the jobs that a person really sees.
    parts["on_screen"] = gr.Textbox(visible="hidden", label="Shown training", elem_id="on-screen")
    parts["removed"] = gr.Textbox(visible="hidden", label="Training to bring back")
    parts["waiting"] = gr.Textbox(visible="hidden", label="Waiting trainings")
    with gr.Column() as parts["empty"]:
        gr.HTML(
            '<div class="empty-state"><h2>No training yet</h2><p>Choose 3 to 5 pictures of '
            "something, press Teach, and watch here how it is learned.</p></div>"
        )
        parts["begin"] = gr.Button("Teach something", variant="primary")
    parts["restore"] = gr.Button("", size="sm", visible=False)
    with gr.Row(visible=False) as parts["full"]:
        with gr.Column(scale=1, min_width=260):
            parts["list"] = gr.Radio(label="Yours", elem_classes="trainings")
            parts["clear"] = gr.Button("", size="sm", visible=False)
        with gr.Column(scale=4, min_width=320):
            _job(parts)
    _connect(ProgressHandlers(backend, list(parts)), page, tab, parts)


def _job(parts: dict[str, Any]) -> None:
    with gr.Row(elem_classes="head"):
        parts["headline"] = gr.HTML(js_on_load=ANNOUNCED)
        # A state shows one of these.
        for name, label in (("play", "Play with it"), ("report", "See the report")):
            parts[name] = gr.Button(label, variant="primary", min_width=120, visible=False)
        parts["resume"] = gr.Button("Resume", variant="primary", min_width=120, visible=False)
        parts["stop"] = gr.Button("Stop", min_width=120, visible=False)
        with gr.Accordion("More", open=False, elem_classes="menu"):
            parts["frame"] = gr.Button("Add a frame now", size="sm", visible=False)
            parts["name"] = gr.Textbox(label="Name", max_length=100, submit_btn="Rename")
            parts["remove"] = gr.Button("Remove", size="sm", variant="stop")
    parts["facts"] = gr.HTML()
    parts["film"] = gr.HTML(js_on_load=_STORY)
    with gr.Row(elem_classes="keeping"):
        parts["prompts"] = gr.HTML(js_on_load=_STORY)
        parts["note"] = gr.HTML()
        parts["keep"] = gr.Button("", size="sm", min_width=120, visible=False)
    parts["pair"] = gr.HTML()
    with gr.Accordion("Curves and scores", open=False) as parts["curves"]:
        parts["scores"] = gr.HTML()
        with gr.Row(elem_classes="charts"):
            parts |= plots()
    with gr.Accordion("Log", open=False) as parts["fold"]:
        parts["machine"] = gr.HTML()
        parts["log"] = gr.HTML()


def _connect(handlers: "ProgressHandlers", page: Page, tab: gr.Tab, parts: dict[str, Any]) -> None:
    look = gr.State(Look())
    on_screen = parts["on_screen"]
    wanted, seen, shown = [look, page.job], [look, on_screen], [*parts.values(), page.job]

    def does(event: Callable[..., Any], act: Callable[..., Any], *given: Any) -> None:  # noqa: ANN401
        event(act, given, None, **QUIET).then(handlers.refresh, wanted, shown, **_AT_ONCE)

    def looks(event: Callable[..., Any], handler: Callable[..., Any], *given: Any) -> None:  # noqa: ANN401
        event(handler, [*given, *seen], shown, trigger_mode="always_last", **_AT_ONCE)

    on_screen.change(None, on_screen, None, js=_TELL)
    parts["timer"].tick(handlers.tick, [*wanted, on_screen], shown, **_AT_ONCE)
    for opened in (tab.select, page.job.change):
        opened(handlers.enter, wanted, shown, trigger_mode="always_last", **_AT_ONCE)
    page.tabs.select(handlers.leave, look, parts["timer"], **_AT_ONCE)
    looks(parts["list"].input, handlers.choose, parts["list"])
    for name in ("film", "prompts"):
        looks(parts[name].select, handlers.pick)
    looks(parts["fold"].expand, handlers.unfold(True))
    looks(parts["fold"].collapse, handlers.unfold(False))
    for name in ("stop", "frame", "resume", "remove"):
        does(parts[name].click, handlers.ask(name), *seen)
    does(parts["clear"].click, handlers.clear, look, parts["waiting"])
    does(parts["name"].submit, handlers.rename, parts["name"], *seen)
    does(parts["restore"].click, handlers.restore, look, parts["removed"])
    parts["begin"].click(lambda: gr.Tabs(selected=CONCEPTS), None, page.tabs, **_AT_ONCE)
    parts["keep"].click(handlers.keep, [parts["keep"], on_screen], page.concept, **QUIET)
    opens = [page.concept, page.tabs, parts["timer"]]
    parts["play"].click(handlers.play, seen, opens, **QUIET)
    parts["report"].click(handlers.report, seen, opens, **QUIET)


class ProgressHandlers:
    """Event handlers of the Progress tab; people see and change only their own trainings."""

    def __init__(self, backend: Backend, parts: list[str]) -> None:
        """Return updates of `parts`, in this order, and of the shown job."""
        self._backend = backend
        self._jobs = backend.jobs
        self._watcher = Watcher(backend)
        self._parts = parts

    # ------------------------------------------------------------------------------ showing

    def refresh(self, look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
        """Send the parts that changed; without a job, show the one most worth seeing."""
        with errors_on_page():
            job = self._watcher.find(job_id, owner(request))
            view = self._watcher.view(job, owner(request), look)
            found = job.id if job else None
            return [*look.new(view, self._parts), gr.skip() if found == job_id else found]

    def tick(
        self, look: Look, job_id: str | None, on_screen: str | None, request: gr.Request
    ) -> list[Any]:
        """Send the parts that changed, or all if an older answer arrived last."""
        if look.shown != (on_screen or None):
            look.sent.clear()
        return self.refresh(look, job_id, request)

    def enter(self, look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
        """Send every part: the tab was opened, or another tab chose a job."""
        look.open = True
        look.sent.clear()
        return self.refresh(look, job_id, request)

    def leave(self, look: Look, event: gr.SelectData) -> dict[str, Any]:
        """Stop sending updates while another tab is open."""
        if event.value.lower() == PROGRESS:
            return gr.skip()
        return self._leave(look)

    def choose(
        self, chosen: str, look: Look, on_screen: str | None, request: gr.Request
    ) -> list[Any]:
        """Show the job that a person chose from the list."""
        with errors_on_page():
            job = self._job(chosen, request)
        return [*self.refresh(look, job.id, request)[:-1], job.id]

    def pick(
        self, look: Look, on_screen: str | None, request: gr.Request, event: gr.EventData
    ) -> list[Any]:
        """Show a frame large, or another prompt in all frames; the newest frame is followed."""
        with errors_on_page():
            pictures = self._jobs.progress(self._job(on_screen, request).id).pictures
        if look.shown == on_screen:  # otherwise, the page shows another job by now
            if str(event.prompt or "").isdecimal():
                look.prompt = int(event.prompt)
            if str(event.step or "").isdecimal():
                step = int(event.step)
                look.step = None if step == max(pictures, default=None) else step
        return self.refresh(look, on_screen, request)

    def unfold(self, log: bool) -> Looks:
        """Return a handler that shows or hides the log."""

        def unfold(look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
            look.log = log
            return self.refresh(look, job_id, request)

        return unfold

    # ----------------------------------------------------------------------------- requests

    def ask(self, what: str) -> Asks:
        """Return a handler that sends a request to the shown job and reports the outcome."""
        asks: dict[str, Callable[[str], None]] = {
            "stop": self._jobs.stop,
            "frame": self._jobs.add_frame,
            "resume": self._jobs.resume,
            "remove": self._jobs.remove,
        }

        def ask(look: Look, job_id: str | None, request: gr.Request) -> None:
            with errors_on_page():
                job = self._job(job_id, request)
                asks[what](job.id)
            self._backend.dispatcher.wake()
            gr.Info(_answer(what, job), duration=4)

        return ask

    def clear(self, look: Look, waiting: str | None, request: gr.Request) -> None:
        """Remove the jobs that the screen shows as waiting and that still wait."""
        with errors_on_page():
            seen = [self._job(job_id, request) for job_id in (waiting or "").split()]
            queued = [job for job in seen if job.status is Status.QUEUED and not job.removed]
            for job in queued:
                self._jobs.remove(job.id)
        gr.Info(f"Removed: {len(queued)}. Bring back undoes it.", duration=4)

    def rename(self, name: str, look: Look, job_id: str | None, request: gr.Request) -> None:
        """Rename the shown job."""
        with errors_on_page():
            self._jobs.rename(self._job(job_id, request).id, name)
        look.sent.pop("name", None)  # the saved name may differ from the typed one

    def restore(self, look: Look, removed: str | None, request: gr.Request) -> None:
        """Restore the job that the button names."""
        with errors_on_page():
            self._jobs.restore(self._job(removed, request).id)

    def keep(self, button: str | None, job_id: str | None, request: gr.Request) -> str:
        """Save the step that the button names to the library, and select it for Play."""
        with errors_on_page():
            job = self._job(job_id, request)
            step = re.search(r"\d+$", button or "")
            if step is None:
                raise LoLDUError("No step is saved yet: wait for the first frame.")
            name = f"{job.name[:80]}, step {step[0]}"
            entry = self._backend.library.keep(job, int(step[0]), name)
        gr.Info(f"“{escape(entry.name)}” is in the Library, and Play uses it.", duration=4)
        return entry.id

    def play(self, look: Look, job_id: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Open Play with the result."""
        with errors_on_page():
            entry = self._backend.library.of_job(self._job(job_id, request))
        return entry.id, gr.Tabs(selected=PLAY), self._leave(look)

    def report(self, look: Look, job_id: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Open Score with the report of the shown scoring."""
        with errors_on_page():
            concept = self._job(job_id, request).concept
        return concept, gr.Tabs(selected=SCORE), self._leave(look)

    def _leave(self, look: Look) -> dict[str, Any]:
        look.open = False
        return gr.update(active=False)

    def _job(self, job_id: str | None, request: gr.Request) -> Job:
        return self._backend.job(job_id, request)


def _answer(what: str, job: Job) -> str:
    """Return the message after a request; `job` is the job before it."""
    if what == "stop" and job.status is Status.QUEUED:
        return "Out of the queue; Resume puts it back."
    if what == "remove" and job.status in ACTIVE:
        return "Stopping, then removed; Bring back undoes it."
    return {
        "stop": "Stopping after this step…",
        "frame": "Drawing and saving after this step…",
        "resume": "Back in the queue.",
        "remove": "Removed; Bring back undoes it.",
    }[what]
