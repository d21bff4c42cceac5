"""The Score tab: a job that scores the base and a concept on the same prompts."""

import logging
from collections.abc import Sequence
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr

from eval.report.before_after import REPORT_HTML, REPORT_PNG
from eval.report.page import verdict_html
from eval.report.tables import before_after_rows
from loldu.errors import LoLDUError
from loldu.files import save_png
from loldu.pictures.open import load_image
from webui.backend import Backend, owner
from webui.engine.job import ACTIVE, ENDED, RESUMABLE, Job, Kind, Status
from webui.library.about import about
from webui.library.entry import Entry
from webui.library.scoring import (
    MOST_STEPS,
    drawn,
    has_true_pictures,
    options_for,
    pictures_of,
    preset_of,
    presets,
    report_of,
    usual_steps,
)
from webui.page import ANNOUNCED, QUIET, Page, errors_on_page, score_table
from webui.teaching.uploads import FILE_TYPES, decoded

logger = logging.getLogger("webui")

_MOST_REAL = 5
_STATES = {Status.QUEUED: "In the queue", Status.RUNNING: "Measuring"}


def create_score(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    usual = preset_of(backend.base)
    parts: dict[str, Any] = {"timer": gr.Timer(2, active=False)}
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            _form(parts, usual)
        with gr.Column(scale=2, min_width=320):
            parts["status"] = gr.HTML(js_on_load=ANNOUNCED)
            with gr.Row():
                parts["stop"] = gr.Button("Stop", size="sm", visible=False)
                parts["resume"] = gr.Button("Resume", size="sm", visible=False)
            parts["verdict"] = gr.HTML()
            with gr.Accordion("Numbers", open=False, visible=False) as parts["numbers"]:
                parts["table"] = gr.HTML()
            parts["picture"] = gr.Image(
                label="Report",
                show_label=False,
                format="png",
                interactive=False,
                visible=False,
                buttons=["download", "fullscreen"],
            )
            with gr.Accordion("All pictures", open=False, visible=False) as parts["all"]:
                parts["page"] = gr.HTML()
    _connect(ScoreHandlers(backend, list(parts)), page, tab, parts)


def _form(parts: dict[str, Any], usual: str) -> None:
    parts["concept"] = gr.Dropdown([], value=None, label="Concept")
    parts["preset"] = gr.Dropdown(
        list(presets()), value=usual, label="Prompts", info="The set of prompts to draw"
    )
    parts["seeds"] = gr.Slider(
        1, 8, 2, step=1, precision=0, label="Seeds", info="More are steadier, and slower"
    )
    parts["steps"] = gr.Number(
        presets()[usual]["num_inference_steps"],
        label="Steps",
        precision=0,
        minimum=1,
        maximum=MOST_STEPS,
    )
    with gr.Column(visible=False) as parts["needs"]:
        parts["token"] = gr.Textbox(label="Rare token", max_length=40)
        parts["class_name"] = gr.Textbox(label="Class, such as toy", max_length=40)
        parts["real"] = gr.File(
            label=f"1 to {_MOST_REAL} real pictures of it",
            file_count="multiple",
            file_types=FILE_TYPES,
            height=150,
        )
    parts["estimate"] = gr.Markdown(estimate(usual, 2))
    parts["score"] = gr.Button("Score", variant="primary", interactive=False)


def _connect(handlers: "ScoreHandlers", page: Page, tab: gr.Tab, parts: dict[str, Any]) -> None:
    shown = list(parts.values())
    asked = [parts[name] for name in ("concept", "preset", "seeds", "steps")]
    gr.on([tab.select, page.concept.change], handlers.enter, page.concept, shown, **QUIET)
    parts["concept"].input(handlers.choose, parts["concept"], page.concept, **QUIET)
    gr.on(
        [parts["preset"].change, parts["seeds"].change],
        estimate,
        asked[1:3],
        parts["estimate"],
        **QUIET,
    )
    needed = [parts[name] for name in ("token", "class_name", "real")]
    parts["score"].click(handlers.score, [*asked, *needed], shown, **QUIET)
    parts["stop"].click(handlers.stop, page.concept, shown, **QUIET)
    parts["resume"].click(handlers.resume, page.concept, shown, **QUIET)
    parts["timer"].tick(handlers.refresh, page.concept, shown, queue=False, **QUIET)


class ScoreHandlers:
    """Event handlers of the Score tab; people see and change only their own jobs."""

    def __init__(self, backend: Backend, parts: Sequence[str]) -> None:
        """Return updates of `parts`, in this order."""
        self._backend = backend
        self._parts = parts

    def enter(self, concept: str | None, request: gr.Request) -> list[Any]:
        """List the concepts, and show the chosen one's last scoring."""
        who = owner(request)
        with errors_on_page():
            entries = self._backend.library.list(who)
            entry = next((entry for entry in entries if entry.id == concept), None)
            view: dict[str, Any] = {
                "concept": gr.update(
                    choices=[(entry.name, entry.id) for entry in entries],
                    value=entry.id if entry else None,
                ),
                "score": gr.update(interactive=entry is not None),
                "needs": gr.update(visible=False),
            }
            if entry:
                view |= self._needs(entry)
            return self._updates(view | self._view(entry, who))

    def choose(self, concept: str | None, request: gr.Request) -> str | None:
        """Choose another concept, here and in Play."""
        with errors_on_page():
            return self._backend.library.get(concept, owner(request)).id

    def score(
        self,
        concept: str | None,
        preset: str,
        seeds: int,
        steps: int | None,
        token: str,
        class_name: str,
        real: Sequence[str] | None,
        request: gr.Request,
    ) -> list[Any]:
        """Queue a scoring of the concept."""
        who, backend = owner(request), self._backend
        with errors_on_page(), TemporaryDirectory() as folder:
            entry = backend.library.get(concept, who)
            if steps is None:
                raise LoLDUError("Steps needs a number.")
            options = options_for(entry, backend.base, preset, seeds, steps)
            options |= {"token": token.strip() or None, "class_name": class_name.strip() or None}
            uploaded = None
            if not has_true_pictures(entry):
                uploaded = Path(folder)
                _save_pictures(real or (), uploaded)
            backend.jobs.submit_score(entry.name, who, entry.id, entry.folder, options, uploaded)
            backend.dispatcher.wake()
            return self._updates(self._view(entry, who))

    def stop(self, concept: str | None, request: gr.Request) -> list[Any]:
        """Stop the concept's last scoring."""
        with errors_on_page():
            self._backend.jobs.stop(self._last(concept, request).id)
        self._backend.dispatcher.wake()
        return self.refresh(concept, request)

    def resume(self, concept: str | None, request: gr.Request) -> list[Any]:
        """Resume the last scoring; it draws the missing pictures."""
        with errors_on_page():
            self._backend.jobs.resume(self._last(concept, request).id)
        self._backend.dispatcher.wake()
        return self.refresh(concept, request)

    def refresh(self, concept: str | None, request: gr.Request) -> list[Any]:
        """Show the progress of the concept's last scoring."""
        with errors_on_page():
            entry = self._backend.library.get(concept, owner(request)) if concept else None
            return self._updates(self._view(entry, owner(request)))

    # ------------------------------------------------------------------------------ private

    def _updates(self, view: dict[str, Any]) -> list[Any]:
        return [view.get(part, gr.skip()) for part in self._parts]

    def _needs(self, entry: Entry) -> dict[str, Any]:
        """Return updates of the fields that a person fills in because the files lack them."""
        try:
            facts = about(entry.path)
        except LoLDUError:  # the job would report it
            return {}
        is_named = bool(facts.token and facts.class_name)
        has_pictures = has_true_pictures(entry)
        preset = preset_of(self._backend.base)
        return {
            "needs": gr.update(visible=not (is_named and has_pictures)),
            "token": gr.update(value=facts.token or "", visible=not is_named),
            "class_name": gr.update(value=facts.class_name or "", visible=not is_named),
            "real": gr.update(value=None, visible=not has_pictures),
            "steps": usual_steps(entry, preset),
        }

    def _last(self, concept: str | None, request: gr.Request) -> Job:
        who = owner(request)
        job = self._job(self._backend.library.get(concept, who), who)
        if job is None:
            raise LoLDUError("This concept has not been scored.")
        return job

    def _job(self, entry: Entry, who: str) -> Job | None:
        """Return the last scoring of a concept that its owner asked for, or None."""
        jobs = self._backend.jobs.list(who, Kind.SCORE)
        return next((job for job in reversed(jobs) if job.concept == entry.id), None)

    def _view(self, entry: Entry | None, who: str) -> dict[str, Any]:
        job = self._job(entry, who) if entry else None
        view: dict[str, Any] = {
            "timer": gr.update(active=job is not None and job.status not in ENDED),
            "stop": gr.update(visible=job is not None and job.status not in ENDED),
            "resume": gr.update(visible=job is not None and job.status in RESUMABLE),
            "status": self._status(job) if job else _nothing(entry),
            "verdict": "",
            "numbers": gr.update(visible=False),
            "table": "",
            "picture": gr.update(value=None, visible=False),
            "all": gr.update(visible=False),
            "page": "",
        }
        if job is not None and job.status is Status.FINISHED:
            view |= _report(job)
        return view

    def _status(self, job: Job) -> str:
        state, facts = _STATES.get(job.status, job.status.capitalize()), ""
        if job.status is Status.QUEUED:
            waiting = [each.id for each in self._backend.jobs.queue()]
            if job.id in waiting:  # it may have begun meanwhile
                place = waiting.index(job.id) + 1
                facts = f"Number {place} in the queue for a device."
        elif job.status in ACTIVE:
            done, total = drawn(job)
            if job.status is Status.RUNNING and done < total:
                state = "Drawing"
            facts = (
                f'<progress aria-label="Pictures" max="{total}" value="{done}"></progress>'
                f"{done} of {total} pictures."
            )
            last = self._backend.jobs.progress(job.id).last_line
            facts += f'<p class="last-line">{escape(last)}</p>'
        return (
            f"<h2>{escape(job.name)}</h2><p><strong>{state}.</strong> {escape(job.message)}</p>"
            f"<div>{facts}</div>"
        )


def estimate(preset: str, seeds: int) -> str:
    """Return a sentence with the number of pictures to draw."""
    chosen = presets()[preset]
    of_concept, others = len(chosen["prompts"]), len(chosen["other_prompts"])
    count = pictures_of({**chosen, "seeds": range(seeds)})
    return (
        f"{count} pictures: {of_concept} prompts of the concept and {others} of other things, "
        f"{seeds} seed{'s' if seeds > 1 else ''} each, without the concept and with it."
    )


def _nothing(entry: Entry | None) -> str:
    if entry is None:
        return (
            '<div class="empty-state"><h2>How good is it?</h2><p>Choose a concept to measure it '
            "against the base on the same prompts.</p></div>"
        )
    return f"<h2>{escape(entry.name)}</h2><p>It has not been scored yet.</p>"


def _report(job: Job) -> dict[str, Any]:
    """Return the report of a scoring; its HTML page sits in a sandboxed frame without scripts."""
    try:
        report = report_of(job)
        heading, *rows = before_after_rows(report)
        picture = load_image(job.folder / REPORT_PNG)
        page = (job.folder / REPORT_HTML).read_text(encoding="utf-8")
    except Exception:  # its files are gone, damaged or of another version
        logger.exception("The report of %s cannot be read.", job.name)
        return {"verdict": "<p>The report cannot be read; score the concept again.</p>"}
    frame = f'<iframe class="report" sandbox title="Report" srcdoc="{escape(page)}"></iframe>'
    return {
        "verdict": verdict_html(report.verdict),
        "numbers": gr.update(visible=True),
        "table": f'<div class="wide">{score_table(heading, rows)}</div>',
        "picture": gr.update(value=picture, visible=True),
        "all": gr.update(visible=True),
        "page": frame,
    }


def _save_pictures(sent: Sequence[str], folder: Path) -> None:
    """Decode uploads and save them to `folder`.

    Raises:
        LoLDUError: If there is none, there are too many, or one is not a picture.
    """
    if not 1 <= len(sent) <= _MOST_REAL:
        raise LoLDUError(
            f"The training pictures of this concept are missing: add 1 to {_MOST_REAL} real "
            "pictures of it to compare with."
        )
    for number, path in enumerate(sent):
        save_png(decoded(Path(path), Path(path).name), folder / f"{number}.png")
