"""The Progress tab: a person's trainings, how far they are, and requests to them."""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from loldu.errors import LoLDUError
from webui.backend import Backend, owner
from webui.engine.job import Job, Status
from webui.page import ANNOUNCED, CONCEPTS, PLAY, PROGRESS, QUIET, Page, errors_on_page
from webui.watching.charts import plots
from webui.watching.watcher import Look, Watcher

_AT_ONCE: dict[str, Any] = QUIET | {"queue": False}
"""Events that do not wait for drawings of other tabs; they cannot show messages."""
_TELL = "(id) => { dispatchEvent(new CustomEvent('loldu-shown', {detail: id})); }"
"""JavaScript that puts the shown job into the address of the page."""
Looks = Callable[[Look, str | None, gr.Request], list[Any]]
Asks = Callable[[Look, str | None, gr.Request], None]
_REQUESTS = {
    "stop": "Stop",
    "finish": "Finish now",
    "save": "Save now",
    "sample": "Sample now",
    "resume": "Resume",
    "remove": "Remove",
}


def create_progress(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    parts: dict[str, Any] = {"timer": gr.Timer(1, active=False)}
    # Unlike a gr.State, it is sent by the browser: it holds the job that a person really sees.
    parts["on_screen"] = gr.Textbox(visible="hidden", label="Shown training", elem_id="on-screen")
    parts["restore"] = gr.Button("", size="sm", visible=False)
    with gr.Column() as parts["empty"]:
        gr.HTML(
            '<div class="empty-state"><h2>No training yet</h2><p>Choose 3 to 5 pictures of '
            "something, press Teach, and watch here how it is learned.</p></div>"
        )
        parts["begin"] = gr.Button("Teach something", variant="primary")
    with gr.Row(visible=False) as parts["full"]:
        with gr.Column(scale=1, min_width=300):
            parts["list"] = gr.Radio(label="Your trainings", elem_classes="trainings")
            parts["cancel_all"] = gr.Button("", size="sm", visible=False)
            _question(parts, "all", "Yes, cancel them all")
        with gr.Column(scale=3, min_width=320):
            _job(parts)
    _connect(ProgressHandlers(backend, list(parts)), page, tab, parts)


def _job(parts: dict[str, Any]) -> None:
    parts["headline"] = gr.HTML(js_on_load=ANNOUNCED)
    parts["facts"] = gr.HTML()
    with gr.Row(elem_classes="requests"):
        parts["play"] = gr.Button("Play with it", variant="primary", size="sm", min_width=90)
        for name, label in _REQUESTS.items():
            parts[name] = gr.Button(label, size="sm", min_width=90)
        parts["cancel"] = gr.Button("Cancel", variant="stop", size="sm", min_width=90)
    _question(parts, "one", "Yes, end it")
    _pictures(parts)
    with gr.Row(elem_classes="charts"):
        parts |= plots()
    with gr.Accordion("Log", open=False) as parts["fold"]:
        parts["log"] = gr.HTML()
    parts["name"] = gr.Textbox(label="Name of this training", max_length=100, submit_btn="Rename")


def _pictures(parts: dict[str, Any]) -> None:
    with gr.Row():
        with gr.Column(scale=2, min_width=280, visible=False) as parts["steps"]:
            parts["scrubber"] = gr.Slider(
                1, 2, 1, step=1, precision=0, buttons=[], elem_classes="scrubber"
            )
            parts["follow"] = gr.Checkbox(True, label="Follow the newest")
        with gr.Column(scale=1, min_width=200):
            parts["scores"] = gr.HTML()
        with gr.Column(scale=1, min_width=200, visible=False) as parts["keeping"]:
            parts["checkpoint"] = gr.Dropdown([], label="Checkpoint")
            parts["keep"] = gr.Button("Keep this step", size="sm")
            parts["note"] = gr.HTML()
    look: dict[str, Any] = {"rows": 1, "height": "auto", "visible": False, "format": "png"}
    look |= {"elem_classes": ["pictures", "steps"], "interactive": False}
    parts["base"] = gr.Gallery(label="Base", **look)
    parts["adapted"] = gr.Gallery(label="Step", **look)


def _question(parts: dict[str, Any], which: str, yes: str) -> None:
    """Lay out the question before something that cannot be undone."""
    with gr.Column(visible=False, elem_classes="question") as parts[f"ask_{which}"]:
        parts[f"question_{which}"] = gr.HTML(js_on_load=ANNOUNCED)
        with gr.Row():
            parts[f"yes_{which}"] = gr.Button(yes, variant="stop", size="sm", min_width=90)
            parts[f"no_{which}"] = gr.Button("No", size="sm", min_width=90)


def _connect(handlers: "ProgressHandlers", page: Page, tab: gr.Tab, parts: dict[str, Any]) -> None:
    look = gr.State(Look())
    on_screen = parts["on_screen"]
    wanted, seen, shown = [look, page.job], [look, on_screen], [*parts.values(), page.job]

    def does(event: Callable[..., Any], act: Callable[..., Any], *given: Any) -> None:  # noqa: ANN401
        event(act, [*given, *seen], None, **QUIET).then(handlers.refresh, wanted, shown, **_AT_ONCE)

    def looks(event: Callable[..., Any], handler: Callable[..., Any], *given: Any) -> None:  # noqa: ANN401
        event(handler, [*given, *seen], shown, trigger_mode="always_last", **_AT_ONCE)

    on_screen.change(None, on_screen, None, js=_TELL)
    parts["timer"].tick(handlers.tick, [*wanted, on_screen], shown, **_AT_ONCE)
    for opened in (tab.select, page.job.change):
        opened(handlers.enter, wanted, shown, trigger_mode="always_last", **_AT_ONCE)
    page.tabs.select(handlers.leave, look, parts["timer"], **_AT_ONCE)
    looks(parts["list"].input, handlers.choose, parts["list"])
    looks(parts["scrubber"].input, handlers.scrub, parts["scrubber"])
    looks(parts["follow"].input, handlers.follow, parts["follow"])
    looks(parts["checkpoint"].input, handlers.choose_checkpoint, parts["checkpoint"])
    looks(parts["fold"].expand, handlers.unfold(True))
    looks(parts["fold"].collapse, handlers.unfold(False))
    for name in _REQUESTS:
        does(parts[name].click, handlers.ask(name))
    looks(parts["cancel"].click, handlers.question("one"))
    looks(parts["cancel_all"].click, handlers.question("all"))
    for which in ("one", "all"):
        looks(parts[f"no_{which}"].click, handlers.question(None))
    does(parts["yes_one"].click, handlers.ask("cancel"))
    does(parts["yes_all"].click, handlers.cancel_all)
    does(parts["name"].submit, handlers.rename, parts["name"])
    does(parts["restore"].click, handlers.restore)
    parts["begin"].click(lambda: gr.Tabs(selected=CONCEPTS), None, page.tabs, **_AT_ONCE)
    parts["keep"].click(handlers.keep, [parts["checkpoint"], on_screen], page.concept, **QUIET)
    parts["play"].click(handlers.play, seen, [page.concept, page.tabs, parts["timer"]], **QUIET)


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

    def scrub(self, place: int, look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
        """Show the pictures of one step, and stay at it."""
        with errors_on_page():
            steps = sorted(self._jobs.progress(self._job(job_id, request).id).pictures)
            look.step = steps[min(place, len(steps)) - 1] if steps else None
        return self.refresh(look, job_id, request)

    def follow(
        self, newest: bool, look: Look, job_id: str | None, request: gr.Request
    ) -> list[Any]:
        """Follow the newest pictures, or stay at the current ones."""
        with errors_on_page():
            pictures = self._jobs.progress(self._job(job_id, request).id).pictures
            look.step = None if newest else max(pictures, default=None)
        return self.refresh(look, job_id, request)

    def choose_checkpoint(
        self, step: int, look: Look, job_id: str | None, request: gr.Request
    ) -> list[Any]:
        """Choose the checkpoint to keep."""
        look.checkpoint = step
        return self.refresh(look, job_id, request)

    def unfold(self, log: bool) -> Looks:
        """Return a handler that shows or hides the log."""

        def unfold(look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
            look.log = log
            return self.refresh(look, job_id, request)

        return unfold

    def question(self, which: str | None) -> Looks:
        """Return a handler that asks before cancelling `one` or `all`, or closes the question."""

        def question(look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
            look.asked = which
            return self.refresh(look, job_id, request)

        return question

    # ----------------------------------------------------------------------------- requests

    def ask(self, what: str) -> Asks:
        """Return a handler that sends a request to the shown job and reports the outcome."""
        asks: dict[str, Callable[[str], None]] = {
            "stop": self._jobs.stop,
            "cancel": self._jobs.cancel,
            "finish": self._jobs.finish_now,
            "save": self._jobs.save_now,
            "sample": self._jobs.sample_now,
            "resume": self._jobs.resume,
            "remove": self._jobs.remove,
        }

        def ask(look: Look, job_id: str | None, request: gr.Request) -> None:
            look.asked = None
            with errors_on_page():
                job = self._job(job_id, request)
                asks[what](job.id)
            self._backend.dispatcher.wake()
            gr.Info(_answer(what, job), duration=4)

        return ask

    def cancel_all(self, look: Look, job_id: str | None, request: gr.Request) -> None:
        """Cancel all queued trainings of the person."""
        look.asked = None
        with errors_on_page():
            queued = self._watcher.queued(owner(request))
            for job in queued:
                self._jobs.cancel(job.id)
        gr.Info(f"Cancelled: {len(queued)}.", duration=4)

    def rename(self, name: str, look: Look, job_id: str | None, request: gr.Request) -> None:
        """Rename the shown job."""
        with errors_on_page():
            self._jobs.rename(self._job(job_id, request).id, name)
        look.sent.pop("name", None)  # the saved name may differ from the typed one

    def restore(self, look: Look, job_id: str | None, request: gr.Request) -> None:
        """Restore the job that was removed last."""
        with errors_on_page():
            if (job := self._watcher.last_removed(owner(request))) is not None:
                self._jobs.restore(job.id)

    def keep(self, step: int | None, job_id: str | None, request: gr.Request) -> str:
        """Save a checkpoint's concept to the library, and select it for Play."""
        with errors_on_page():
            job = self._job(job_id, request)
            if step is None:
                raise LoLDUError("No checkpoint is chosen: choose one from the list.")
            entry = self._backend.library.keep(job, step, f"{job.name[:80]}, step {step}")
        gr.Info(f"“{escape(entry.name)}” is in the Library, and Play uses it.", duration=4)
        return entry.id

    def play(self, look: Look, job_id: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Open Play with the result."""
        with errors_on_page():
            entry = self._backend.library.of_job(self._job(job_id, request))
        return entry.id, gr.Tabs(selected=PLAY), self._leave(look)

    def _leave(self, look: Look) -> dict[str, Any]:
        look.open = False
        return gr.update(active=False)

    def _job(self, job_id: str | None, request: gr.Request) -> Job:
        return self._backend.job(job_id, request)


def _answer(what: str, job: Job) -> str:
    """Return the message after a request; `job` is the job before it."""
    if job.status is Status.QUEUED:
        return {"stop": "Out of the queue; Resume puts it back.", "cancel": "Cancelled."}[what]
    return {
        "stop": "Stopping after this step…",
        "cancel": "Ending after this step…",
        "finish": "Finishing after this step, with the result as it is…",
        "save": "Writing a checkpoint after this step…",
        "sample": "Drawing pictures after this step…",
        "resume": "Back in the queue.",
        "remove": "Removed; Bring back undoes it.",
    }[what]
