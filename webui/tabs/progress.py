"""Progress: the trainings, how far they are, and what can be asked of them."""

from collections.abc import Callable
from html import escape
from typing import Any

import gradio as gr

from loldu.errors import LoLDUError
from webui.backend import Backend, owner
from webui.engine.job import Job, Status
from webui.page import CONCEPTS, PLAY, PROGRESS, Page, told
from webui.watching.watcher import Look, Watcher

_PRIVATE: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
_AT_ONCE: dict[str, Any] = _PRIVATE | {"queue": False}
"""Not behind what is drawn in another tab; but only what is queued can raise a message."""
_LIVE = "element.setAttribute('role', 'status')"  # a screen reader tells when it changes
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
    """Lay out the tab, and connect it."""
    parts: dict[str, Any] = {"timer": gr.Timer(1, active=False)}
    with gr.Column() as parts["empty"]:
        gr.HTML(
            "<h2>Nothing is trained yet</h2><p>Choose 3 to 5 pictures of something, press Train, "
            "and watch here how it is learnt.</p>"
        )
        parts["begin"] = gr.Button("Go to Concepts", variant="primary")
    with gr.Row(visible=False) as parts["full"]:
        with gr.Column(scale=1, min_width=300):
            parts["list"] = gr.Radio(label="Your trainings", elem_classes="trainings")
            parts["cancel_all"] = gr.Button("", size="sm", visible=False)
            _question(parts, "all", "Yes, cancel them all")
        with gr.Column(scale=3, min_width=320):
            _job(parts)
    parts["restore"] = gr.Button("", size="sm", visible=False)
    _connect(Handlers(backend, list(parts)), page, tab, parts)


def _job(parts: dict[str, Any]) -> None:
    parts["headline"] = gr.HTML(js_on_load=_LIVE)
    parts["facts"] = gr.HTML()
    with gr.Row(elem_classes="requests"):
        parts["play"] = gr.Button("Play with it", variant="primary", size="sm", min_width=90)
        for name, label in _REQUESTS.items():
            parts[name] = gr.Button(label, size="sm", min_width=90)
        parts["cancel"] = gr.Button("Cancel", variant="stop", size="sm", min_width=90)
    _question(parts, "one", "Yes, end it")
    _pictures(parts)
    parts["curves"] = gr.HTML()
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
    """What is asked before something that cannot be undone."""
    with gr.Column(visible=False, elem_classes="question") as parts[f"ask_{which}"]:
        parts[f"question_{which}"] = gr.HTML(js_on_load=_LIVE)
        with gr.Row():
            parts[f"yes_{which}"] = gr.Button(yes, variant="stop", size="sm", min_width=90)
            parts[f"no_{which}"] = gr.Button("No", size="sm", min_width=90)


def _connect(handlers: "Handlers", page: Page, tab: gr.Tab, parts: dict[str, Any]) -> None:
    look = gr.State(Look())
    seen, shown = [look, page.job], [*parts.values(), page.job]

    def does(event: Callable[..., Any], act: Callable[..., Any], *given: Any) -> None:  # noqa: ANN401
        event(act, [*given, *seen], None, **_PRIVATE).then(
            handlers.refresh, seen, shown, **_AT_ONCE
        )

    def looks(event: Callable[..., Any], handler: Callable[..., Any], *given: Any) -> None:  # noqa: ANN401
        event(handler, [*given, *seen], shown, trigger_mode="always_last", **_AT_ONCE)

    parts["timer"].tick(handlers.refresh, seen, shown, **_AT_ONCE)
    looks(tab.select, handlers.enter)
    page.tabs.select(handlers.leave, look, parts["timer"], **_AT_ONCE)
    looks(page.job.change, handlers.show)
    parts["list"].input(handlers.choose, parts["list"], page.job, **_AT_ONCE)
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
    parts["keep"].click(handlers.keep, [parts["checkpoint"], page.job], page.concept, **_PRIVATE)
    parts["play"].click(handlers.play, seen, [page.concept, page.tabs, parts["timer"]], **_PRIVATE)


class Handlers:
    """What the tab does with what a person does; each of them sees and asks only of their own."""

    def __init__(self, backend: Backend, parts: list[str]) -> None:
        """Answer for a backend, with updates of these parts and of the job that is shown."""
        self._backend = backend
        self._jobs = backend.jobs
        self._watcher = Watcher(backend)
        self._parts = parts

    # ------------------------------------------------------------------------------ looking

    def refresh(self, look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
        """Send what is new; a job that is not there gives way to the one most worth seeing."""
        with told():
            job = self._watcher.find(job_id, owner(request))
            view = self._watcher.view(job, owner(request), look)
            found = job.id if job else None
            return [*look.new(view, self._parts), gr.skip() if found == job_id else found]

    def enter(self, look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
        """Send everything, whatever was said to be there."""
        look.open = True
        look.sent.clear()
        return self.refresh(look, job_id, request)

    def leave(self, look: Look, event: gr.SelectData) -> dict[str, Any]:
        """Look no more while another tab is open."""
        if event.value.lower() == PROGRESS:
            return gr.skip()
        return self._leave(look)

    def show(self, look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
        """Show another job."""
        look.at_another()
        return self.refresh(look, job_id, request)

    def choose(self, job_id: str, request: gr.Request) -> str:
        """Have another job shown."""
        with told():
            return self._backend.job(job_id, request).id

    def scrub(self, place: int, look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
        """Show the pictures of a step, and stay there."""
        with told():
            steps = sorted(self._jobs.progress(self._job(job_id, request).id).pictures)
            look.step = steps[min(place, len(steps)) - 1] if steps else None
        return self.refresh(look, job_id, request)

    def follow(
        self, newest: bool, look: Look, job_id: str | None, request: gr.Request
    ) -> list[Any]:
        """Show the newest pictures as they come, or stay at those of now."""
        with told():
            pictures = self._jobs.progress(self._job(job_id, request).id).pictures
            look.step = None if newest else max(pictures, default=None)
        return self.refresh(look, job_id, request)

    def choose_checkpoint(
        self, step: int, look: Look, job_id: str | None, request: gr.Request
    ) -> list[Any]:
        """Have another checkpoint kept than that of the shown step."""
        look.checkpoint = step
        return self.refresh(look, job_id, request)

    def unfold(self, log: bool) -> Looks:
        """Show the log, or do not send it any more."""

        def unfold(look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
            look.log = log
            return self.refresh(look, job_id, request)

        return unfold

    def question(self, which: str | None) -> Looks:
        """Ask before cancelling `one` or `all`, or ask no more."""

        def question(look: Look, job_id: str | None, request: gr.Request) -> list[Any]:
            look.asked = which
            return self.refresh(look, job_id, request)

        return question

    # ------------------------------------------------------------------------------- asking

    def ask(self, what: str) -> Asks:
        """Ask something of the shown job, and tell what will come of it."""
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
            with told():
                job = self._job(job_id, request)
                asks[what](job.id)
            self._backend.dispatcher.look()
            gr.Info(_answer(what, job), duration=4)

        return ask

    def cancel_all(self, look: Look, job_id: str | None, request: gr.Request) -> None:
        """Cancel all of the person's own that are queued."""
        look.asked = None
        with told():
            queued = self._watcher.queued(owner(request))
            for job in queued:
                self._jobs.cancel(job.id)
        gr.Info(f"Cancelled: {len(queued)}.", duration=4)

    def rename(self, name: str, look: Look, job_id: str | None, request: gr.Request) -> None:
        """Give the shown job another name."""
        with told():
            self._jobs.rename(self._job(job_id, request).id, name)
        look.sent.pop("name", None)  # what is kept may be another than what was typed

    def restore(self, look: Look, job_id: str | None, request: gr.Request) -> None:
        """Bring back what was removed last."""
        with told():
            if (job := self._watcher.last_removed(owner(request))) is not None:
                self._jobs.restore(job.id)

    def keep(self, step: int | None, job_id: str | None, request: gr.Request) -> str:
        """Put a checkpoint's concept into the library, for Play to use."""
        with told():
            job = self._job(job_id, request)
            if step is None:
                raise LoLDUError("No checkpoint is chosen.")
            entry = self._backend.library.keep(job, step, f"{job.name[:80]}, step {step}")
        gr.Info(f"“{escape(entry.name)}” is in the Library, and Play uses it.", duration=4)
        return entry.id

    def play(self, look: Look, job_id: str | None, request: gr.Request) -> tuple[Any, ...]:
        """Open Play with the result."""
        with told():
            entry = self._backend.library.of_job(self._job(job_id, request))
        return entry.id, gr.Tabs(selected=PLAY), self._leave(look)

    def _leave(self, look: Look) -> dict[str, Any]:
        look.open = False
        return gr.update(active=False)

    def _job(self, job_id: str | None, request: gr.Request) -> Job:
        return self._backend.job(job_id, request)


def _answer(what: str, job: Job) -> str:
    """What comes of a request, of a job as it was before."""
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
