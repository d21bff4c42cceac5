"""The Library tab: a person's concepts, their details, import and export."""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import lru_cache
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
from PIL import Image

from loldu.errors import LoLDUError
from loldu.pictures.open import load_image
from trainer.methods.lora_file import LORA
from webui.backend import Backend, owner
from webui.library.about import About, about
from webui.library.entry import Entry, named_errors
from webui.library.export import export_as_lora, export_concept, export_zip
from webui.page import (
    ANNOUNCED,
    CONCEPTS,
    PLAY,
    QUIET,
    SCORE,
    Page,
    errors_on_page,
    term_list,
)

logger = logging.getLogger("webui")

_CARD_PX = 256
_MOST_SHOWN = 100
_EXPORTS = {
    "concept": "Concept file",
    "lora": "LoRA for A1111 and ComfyUI",
    "zip": "Zip with card and samples",
}


def create_library(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    parts: dict[str, Any] = {"shown": gr.State(()), "chosen": gr.State(), "removed": gr.State()}
    with gr.Column(visible=False) as parts["empty"]:
        gr.HTML(
            '<div class="empty-state"><h2>No concept yet</h2><p>Teach one from 3 to 5 pictures, '
            "or import a concept file.</p></div>"
        )
        begin = gr.Button("Teach something", variant="primary")
    with gr.Row():
        search = gr.Textbox(label="Search", placeholder="A name, a token, a base", scale=3)
        file = gr.UploadButton(
            "Import a concept file or zip",
            file_types=[".safetensors", ".zip"],
            size="sm",
            min_width=200,
        )
    parts["undo"] = gr.Button("", size="sm", visible=False)
    parts["nothing"] = gr.HTML(js_on_load=ANNOUNCED)
    parts["cards"] = gr.Gallery(
        label="Concepts",
        fit_columns=False,
        height="auto",
        allow_preview=False,
        interactive=False,
        object_fit="cover",
        elem_classes=["pictures", "cards"],
        buttons=[],
    )
    with gr.Column(visible=False) as parts["details"]:
        _details(parts)
    _connect(LibraryHandlers(backend, list(parts)), page, tab, parts, search, file)
    begin.click(lambda: gr.Tabs(selected=CONCEPTS), None, page.tabs, **QUIET)


def _details(parts: dict[str, Any]) -> None:
    pictures: dict[str, Any] = {"columns": 5, "rows": 1, "height": "auto", "interactive": False}
    pictures |= {
        "fit_columns": False,
        "elem_classes": "pictures",
        "format": "png",
        "visible": False,
    }
    parts["about"] = gr.HTML(js_on_load=ANNOUNCED)
    with gr.Row():
        parts["play"] = gr.Button("Play with it", variant="primary", size="sm", min_width=90)
        parts["score"] = gr.Button("Score it", size="sm", min_width=90)
        parts["delete"] = gr.Button("Delete", variant="stop", size="sm", min_width=90)
    parts["samples"] = gr.Gallery(label="Drawn with it", **pictures)
    parts["pictures"] = gr.Gallery(label="Taught with", **pictures)
    parts["name"] = gr.Textbox(label="Name", max_length=100, submit_btn="Rename")
    with gr.Row():
        for kind, label in _EXPORTS.items():
            parts[kind] = gr.Button(f"Export: {label}", size="sm", min_width=180)
    parts["file"] = gr.File(label="Download", visible=False, interactive=False)


def _connect(
    handlers: "LibraryHandlers",
    page: Page,
    tab: gr.Tab,
    parts: dict[str, Any],
    search: gr.Textbox,
    file: gr.UploadButton,
) -> None:
    shown, chosen = list(parts.values()), parts["chosen"]

    def does(event: Callable[..., Any], handler: Callable[..., Any], *given: Any) -> None:  # noqa: ANN401
        event(handler, [*given, search], shown, **QUIET)

    does(tab.select, handlers.refresh, chosen, parts["removed"])
    found = [chosen, parts["removed"], search]
    search.change(handlers.refresh, found, shown, trigger_mode="always_last", **QUIET)
    does(parts["cards"].select, handlers.choose, parts["shown"])
    does(parts["name"].submit, handlers.rename, chosen, parts["name"])
    does(parts["delete"].click, handlers.delete, chosen)
    does(parts["undo"].click, handlers.undo, parts["removed"])
    does(file.upload, handlers.add, file)
    for kind in _EXPORTS:
        parts[kind].click(handlers.export(kind), chosen, parts["file"], api_visibility="private")
    for name, place in (("play", PLAY), ("score", SCORE)):
        parts[name].click(handlers.use(place), chosen, [page.concept, page.tabs], **QUIET)


class LibraryHandlers:
    """Event handlers of the Library tab; people see and change only their own concepts."""

    def __init__(self, backend: Backend, parts: Sequence[str]) -> None:
        """Return updates of `parts`, in this order."""
        self._backend = backend
        self._library = backend.library
        self._parts = parts

    def refresh(
        self, chosen: str | None, removed: str | None, search: str, request: gr.Request
    ) -> list[Any]:
        """Show the concepts that match the search."""
        with errors_on_page():
            return self._view(owner(request), search, chosen, removed)

    def choose(
        self, shown: Sequence[str], search: str, event: gr.SelectData, request: gr.Request
    ) -> list[Any]:
        """Show the details of a concept."""
        with errors_on_page():
            return self._view(owner(request), search, shown[int(event.index)])

    def rename(self, chosen: str | None, name: str, search: str, request: gr.Request) -> list[Any]:
        """Rename the chosen concept."""
        with errors_on_page():
            self._library.rename(self._entry(chosen, request).id, owner(request), name)
            return self._view(owner(request), search, chosen)

    def delete(self, chosen: str | None, search: str, request: gr.Request) -> list[Any]:
        """Move the chosen concept to the trash; Undo is offered until the next action."""
        with errors_on_page():
            entry = self._entry(chosen, request)
            self._library.remove(entry.id, owner(request))
            return self._view(owner(request), search, None, entry.id, entry.name)

    def undo(self, removed: str | None, search: str, request: gr.Request) -> list[Any]:
        """Restore the concept that was deleted last."""
        with errors_on_page():
            self._library.restore(removed or "", owner(request))
            return self._view(owner(request), search, removed)

    def add(self, path: str, search: str, request: gr.Request) -> list[Any]:
        """Import a concept file."""
        with errors_on_page():
            entry = self._library.add(Path(path), Path(path).name, owner(request))
            if not about(entry.path).fits(self._backend.base):
                base = escape(about(entry.path).base or "an unknown base")
                gr.Warning(f"This concept was made for {base}, which is not this server's base.")
            return self._view(owner(request), "", entry.id)

    def use(self, place: str) -> Callable[..., tuple[str, gr.Tabs]]:
        """Return a handler that opens another tab with the chosen concept."""

        def use(chosen: str | None, request: gr.Request) -> tuple[str, gr.Tabs]:
            with errors_on_page():
                return self._entry(chosen, request).id, gr.Tabs(selected=place)

        return use

    def export(self, kind: str) -> Callable[..., Iterator[dict[str, Any]]]:
        """Return a handler that offers a download; gradio copies the file before it is deleted."""

        def export(chosen: str | None, request: gr.Request) -> Iterator[dict[str, Any]]:
            with errors_on_page(), TemporaryDirectory() as folder:
                entry = self._entry(chosen, request)
                trained = self._lora_of(entry)
                if kind == "lora":
                    self._backend.require_base()
                    path = export_as_lora(entry, self._backend.base, trained, Path(folder))
                elif kind == "zip":
                    path = export_zip(entry, trained, Path(folder))
                else:
                    path = export_concept(entry, Path(folder))
                yield gr.update(value=str(path), visible=True)

        return export

    # ------------------------------------------------------------------------------ private

    def _entry(self, chosen: str | None, request: gr.Request) -> Entry:
        return self._library.get(chosen, owner(request))

    def _lora_of(self, entry: Entry) -> Path | None:
        """Return the LoRA file that the training wrote at its end, or None."""
        if entry.job is None or entry.step is not None:
            return None
        return self._backend.jobs.get(entry.job).folder / LORA

    def _view(
        self,
        who: str,
        search: str,
        chosen: str | None,
        removed: str | None = None,
        name: str = "",
    ) -> list[Any]:
        """Return the updates of all parts, in their order."""
        entries = self._library.list(who)
        found = [entry for entry in entries if _matches(entry, search)][:_MOST_SHOWN]
        view: dict[str, Any] = {
            "shown": tuple(entry.id for entry in found),
            "removed": removed,
            "empty": gr.update(visible=not entries),
            "undo": gr.update(visible=bool(removed)),
            "nothing": _nothing_found(search) if entries and not found else "",
            "cards": gr.update(
                value=[(card(entry), self._caption(entry)) for entry in found],
                label=f"Concepts ({len(found)} of {len(entries)})",
                selected_index=None,
                visible=bool(entries),
            ),
            "file": gr.update(value=None, visible=False),
        }
        if name:
            view["undo"] = gr.update(value=f"“{name}” is deleted. Undo", visible=True)
        entry = next((entry for entry in entries if entry.id == chosen), None)
        view |= {"chosen": entry.id if entry else None, "details": gr.update(visible=bool(entry))}
        if entry:
            own = entry.owner is not None
            view |= {
                "about": details(entry, self._backend.base),
                "samples": _gallery(entry.samples),
                "pictures": _gallery(entry.pictures),
                "name": gr.update(value=entry.name, visible=own),
                "delete": gr.update(visible=own),
            }
        return [view.get(part, gr.skip()) for part in self._parts]

    def _caption(self, entry: Entry) -> str:
        facts = _facts(entry)
        if not isinstance(facts, About):
            return f"{entry.name} · damaged"
        parts = [entry.name, facts.called, f"step {facts.steps}" if facts.steps else None]
        if not facts.fits(self._backend.base):
            parts.append("for another base")
        return " · ".join(part for part in parts if part)


def _nothing_found(search: str) -> str:
    return (
        f'<p class="empty-state">No concept has “{escape(search.strip())}” in its name, its words '
        "or its base.</p>"
    )


def card(entry: Entry) -> Image.Image:
    """Return a thumbnail of a concept: a sample, a training picture, or a grey square."""
    for path in (*entry.samples, *entry.pictures):
        with suppress(LoLDUError, OSError):  # it is gone or damaged
            return _thumbnail(path, path.stat().st_mtime_ns)
    return Image.new("RGB", (_CARD_PX, _CARD_PX), "#94a3b8")


@lru_cache(maxsize=256)
def _thumbnail(path: Path, written_ns: int) -> Image.Image:
    image = load_image(path)
    image.thumbnail((_CARD_PX, _CARD_PX))
    return image


def details(entry: Entry, base: str) -> str:
    """Return the details of a concept as HTML; names and metadata are escaped."""
    heading = f"<h2>{escape(entry.name)}</h2>"
    facts = _facts(entry)
    if not isinstance(facts, About):
        return f"{heading}<p>{escape(facts)}.</p>"
    scores = ", ".join(f"{title} {value:.3f}" for title, value in facts.scores.items())
    made_for = facts.base or "unknown"
    if not facts.fits(base):
        made_for += ", which is not this server's base: it cannot be drawn here"
    terms = {
        "Called": facts.called or "unknown",
        "Prompt": facts.prompt or "unknown",
        "Base": made_for,
        "Trained": ", ".join(
            part for part in (facts.method, f"{facts.steps} steps" if facts.steps else "") if part
        ),
        "Scores": scores,
        "Size": f"{facts.numbers:,} numbers in {facts.layers} layers, {facts.bytes:,} bytes",
        "From": _origin(entry),
        "Date": time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.created)),
    }
    return heading + term_list(terms)


def _origin(entry: Entry) -> str:
    if entry.owner is None:
        return "the command line; shared by everybody, and edited in its folder"
    if entry.job is None:
        return "an imported file"
    return "a training" if entry.step is None else f"step {entry.step} of a training"


def _facts(entry: Entry) -> About | str:
    """Return the metadata of a concept file, or the error message if it cannot be read."""
    try:
        with named_errors(entry.path, entry.name):
            return about(entry.path)
    except LoLDUError as error:
        return str(error).rstrip(".")
    except Exception:  # a file from anybody must not take the page down
        logger.exception("The concept %s could not be described.", entry.path)
        return f"{entry.name} cannot be read"


def _matches(entry: Entry, search: str) -> bool:
    facts, words = _facts(entry), search.casefold().split()
    said = [entry.name]
    if isinstance(facts, About):
        said += [text for text in (facts.called, facts.prompt, facts.base) if text]
    text = " ".join(said).casefold()
    return all(word in text for word in words)


def _gallery(paths: Sequence[Path]) -> dict[str, Any]:
    shown: list[Image.Image] = []
    for path in paths:
        with suppress(LoLDUError):  # it is gone or damaged
            shown.append(load_image(path))
    return gr.update(value=shown, visible=bool(shown))
