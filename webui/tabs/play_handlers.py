"""Event handlers of the Play tab."""

import random
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from eval.protocols.drawing import file_digest
from loldu.errors import LoLDUError
from webui.backend import Backend, owner
from webui.drawing.asked import (
    STRENGTHS,
    TOGETHER,
    Drawn,
    ask,
    chosen_of,
    is_each,
    known_facts,
    readable_facts,
    rows_of,
    strengths_of,
    uses_of,
)
from webui.drawing.canvas import faces
from webui.drawing.facts import Facts, describe, suggestion
from webui.drawing.grid import describe_grid
from webui.drawing.model import Use
from webui.drawing.queue import Cancelled
from webui.drawing.settings import (
    MAX_CONCEPTS,
    SEEDS,
    Settings,
    base_name,
    png_bytes,
    read_png,
)
from webui.drawing.studio import Picture, Watch
from webui.drawing.words import describe_prompt, lacking, put, reworded
from webui.page import errors_on_page
from webui.served import in_cache

INSERTS = tuple(f"insert_{place}" for place in range(1, MAX_CONCEPTS + 1))
DRAWING: dict[str, Any] = {"concurrency_id": "drawing", "concurrency_limit": 16}
"""Drawings that wait in the studio's queue; further ones wait in gradio's."""


class PlayHandlers:
    """Event handlers of the Play tab, for everybody who uses the page."""

    def __init__(self, backend: Backend, parts: Mapping[str, Any]) -> None:
        """Draw with the model and the concepts of `backend`; `parts` are components by name."""
        self._backend, self._library, self._parts = backend, backend.library, parts
        self._stops: dict[str | None, threading.Event] = {}
        self._failures: dict[str | None, str] = {}

    def look(self, chosen: list[str] | None, request: gr.Request) -> tuple[Any, Any]:
        """List the concepts, or show where they come from; chosen ones stay chosen."""
        entries = self._library.list(owner(request))
        choices = gr.update(choices=[(entry.name, entry.id) for entry in entries])
        there = {entry.id for entry in entries}
        if not there.issuperset(chosen or ()):
            # Only then: this answer may arrive after a newer choice, and must not undo it.
            choices["value"] = [each for each in chosen or () if each in there]
        return choices, gr.update(visible=not entries)

    def arrive(self, request: gr.Request) -> tuple[Any, Any]:
        """List the concepts and choose the newest."""
        newest = self._library.list(owner(request))[:1]
        choices, hint = self.look([], request)
        return {**choices, "value": [entry.id for entry in newest]}, hint

    def take(self, concept: str | None, request: gr.Request) -> tuple[Any, Any]:
        """Choose the concept that another tab has opened."""
        choices, hint = self.look([], request)
        return ({**choices, "value": [concept]} if concept else choices), hint

    def faces(self, request: gr.Request) -> str:
        """Return the pictures of the chips as a style sheet."""
        return faces(self._library.list(owner(request)))

    def choose(self, request: gr.Request, **asked: Any) -> dict[Any, Any]:  # noqa: ANN401
        """Show the controls of the chosen concepts, and set the first one's drawing options.

        Strengths stay with their concepts. In a prompt that the person wrote, the words of the
        concepts come and go, and all else stays.
        """
        chosen, way, prompt = chosen_of(asked), asked["way"], asked["prompt"] or ""
        before, _ = asked["placed"]
        if (chosen, way) == asked["placed"]:  # already shown
            return gr.skip()
        with errors_on_page():
            facts = known_facts(self._library, owner(request), chosen)
        gone = [each for each in before if each not in chosen]
        left = readable_facts(self._library, owner(request), gone)
        strengths = dict(zip(before, strengths_of(asked), strict=False))
        own = suggestion(facts, each=is_each(way, chosen))
        is_mine = prompt not in ("", asked["suggested"])
        shown = _places(chosen, facts, [strengths.get(each, 1.0) for each in chosen], way)
        shown |= {"prompt": reworded(prompt, facts, left) if is_mine else own, "suggested": own}
        if before[:1] != chosen[:1]:
            shown |= self._steps(chosen, request)
            options = ("steps", "num_inference_steps"), ("guidance", "guidance_scale")
            shown |= {part: getattr(facts[0], name) for part, name in options if facts}
        return self._show({name: value for name, value in shown.items() if value is not None})

    def at_most(self, chosen: list[str] | None) -> Any:  # noqa: ANN401
        """Take back a choice that is one too many."""
        if len(chosen or ()) <= MAX_CONCEPTS:
            return gr.skip()
        gr.Info(f"At most {MAX_CONCEPTS} concepts at once.", duration=4)
        return (chosen or [])[:MAX_CONCEPTS]

    def note(self, request: gr.Request, **asked: Any) -> dict[Any, Any]:  # noqa: ANN401
        """Say what of the prompt is read, and offer the words that it lacks."""
        chosen, prompt = chosen_of(asked), asked["prompt"] or ""
        facts = readable_facts(self._library, owner(request), chosen)
        each = is_each(asked["way"], chosen)
        missing = lacking(prompt, facts, each=each) if prompt.strip() else []
        said = describe_prompt(self._backend.base, prompt, facts, missing)
        shown: dict[str, Any] = dict.fromkeys(INSERTS, gr.update(visible=False))
        for name, one in zip(INSERTS, facts, strict=False):
            if one in missing:
                shown[name] = gr.update(visible=True, value=f"Add {one.words}")
        return self._show({**shown, "note": said})

    def insert(self, place: int) -> Callable[..., str]:
        """Return a handler that puts the words of the concept at a place into the prompt."""

        def insert(request: gr.Request, **asked: Any) -> str:  # noqa: ANN401
            prompt, chosen = asked["prompt"] or "", chosen_of(asked)
            facts = readable_facts(self._library, owner(request), chosen)
            return put(prompt, facts[place], facts) if place < len(facts) else prompt

        return insert

    def why(self, request: gr.Request) -> str:
        """Return why the last drawing of this page failed, to stand beside the prompt."""
        sentence = self._failures.pop(request.session_hash, "The picture could not be drawn.")
        return f'<p class="problem">{escape(sentence)}</p>'

    def draw(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio looks for it here
        **asked: Any,  # noqa: ANN401
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Draw with the base, show its pictures, then draw with the concepts."""
        with errors_on_page(), self.stoppable(request) as stop:
            drawn, uses = ask(self._library, owner(request), asked)
            row = self._backend.studio.draw_base(drawn.task, uses, watch(progress, "Base", stop))
            base = self._kept(row, request)
            yield base, [], drawn if uses else None
            if uses:
                yield base, self._draw_concepts(drawn, uses, progress, stop, request), drawn

    def redraw(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio looks for it here
        **asked: Any,  # noqa: ANN401
    ) -> Iterator[Any]:
        """Draw the same concepts again at other strengths, or at another step."""
        chosen, drawn = chosen_of(asked), asked["drawn"]
        if drawn is None or (drawn.chosen, drawn.way) != (chosen, asked["way"]):
            return
        with errors_on_page(), self.stoppable(request) as stop:
            uses = uses_of(self._library, owner(request), asked)
            yield self._draw_concepts(drawn, uses, progress, stop, request)

    def stop(self, request: gr.Request) -> None:
        """Stop the drawing of this page before its next pass."""
        if stop := self._stops.get(request.session_hash):
            stop.set()
        else:
            gr.Info("Nothing is being drawn.", duration=3)

    def reuse(self, picture_id: str | None, request: gr.Request) -> dict[Any, Any]:
        """Set the controls to the settings of a picture in the album."""
        with errors_on_page():
            kept = self._backend.album.get(picture_id, owner(request))
            return self._as_drawn(read_png(kept.path), request)

    def reuse_file(self, path: str, request: gr.Request) -> dict[Any, Any]:
        """Set the controls to the settings in an uploaded PNG."""
        with errors_on_page():
            return self._as_drawn(read_png(Path(path)), request)

    def _as_drawn(self, settings: Settings, request: gr.Request) -> dict[Any, Any]:
        library = self._library
        entries = library.list(owner(request))
        ids: dict[str, tuple[str, int | None]] = {
            file_digest(entry.path): (entry.id, None) for entry in entries
        }
        if any(used.digest not in ids for used in settings.concepts[:1]):  # drawn at another step?
            at_steps = [(each, *at) for each in entries for at in library.steps(each).items()]
            ids = {file_digest(at.path): (each.id, step) for each, step, at in at_steps} | ids
        found = [used for used in settings.concepts if used.digest in ids]
        chosen = [ids[used.digest][0] for used in found]
        if lost := [used.name for used in settings.concepts if used not in found]:
            gr.Warning(
                f"Your library does not have {escape(' and '.join(lost))} as used in the picture: "
                "it was trained again or removed."
            )
        if settings.base_name != base_name(self._backend.base):
            gr.Warning(f"The picture was drawn with another base ({escape(settings.base_name)}).")
        offered, _ = self.look(chosen, request)
        strengths = [used.strength for used in found]
        shown = {"concepts": {**offered, "value": chosen}}
        shown |= _places(chosen, known_facts(library, owner(request), chosen), strengths, TOGETHER)
        shown |= self._steps(chosen, request, ids[found[0].digest][1] if found else None)
        shown |= {"prompt": settings.prompt, "negative_prompt": settings.negative_prompt}
        shown |= {"seed": settings.seed, "steps": settings.num_inference_steps}
        return self._show(shown | {"guidance": settings.guidance_scale})

    def _show(self, updates: Mapping[str, Any]) -> dict[Any, Any]:
        return {self._parts[name]: update for name, update in updates.items()}

    def _steps(
        self, chosen: list[str], request: gr.Request, step: int | None = None
    ) -> dict[str, Any]:
        """Return the choice of a step of the first concept, and an empty grid for it."""
        library = self._library
        entry = library.get(chosen[0], owner(request)) if chosen else None
        steps = library.steps(entry) if entry else {}
        own = next((number for number, at in steps.items() if at == entry), None)
        choices = [(f"{each}{', as in the Library' * (each == own)}", each) for each in steps]
        return {
            "step": gr.update(choices=choices, value=step or own, visible=len(steps) > 1),
            "grid_about": describe_grid(entry, steps),
            "grid": "",
        }

    def _draw_concepts(
        self,
        drawn: Drawn,
        uses: list[Use],
        progress: gr.Progress,
        stop: threading.Event,
        request: gr.Request,
    ) -> list[tuple[str, str]]:
        seen = watch(progress, " and ".join(use.entry.name for use in uses), stop)
        row = self._backend.studio.draw_concepts(drawn.task, rows_of(drawn, uses), seen)
        return self._kept(row, request, each=is_each(drawn.way, drawn.chosen))

    @contextmanager
    def stoppable(self, request: gr.Request) -> Iterator[threading.Event]:
        """Yield the stop event of this page's drawing; a newer drawing stops the older one."""
        if older := self._stops.get(request.session_hash):
            older.set()
        stop = self._stops[request.session_hash] = threading.Event()
        try:
            yield stop
        except Cancelled:
            gr.Info("Stopped.", duration=3)
        except LoLDUError as error:
            self._failures[request.session_hash] = str(error)
            raise
        finally:
            if self._stops.get(request.session_hash) is stop:
                del self._stops[request.session_hash]

    def _kept(
        self, row: Sequence[Picture], request: gr.Request, *, each: bool = False
    ) -> list[tuple[str, str]]:
        """Save all but hidden pictures to the album, and return all with captions for a gallery."""
        contents = [png_bytes(picture.image, picture.settings) for picture in row]
        self._backend.album.keep(
            owner(request),
            [
                (picture.settings, content)
                for picture, content in zip(row, contents, strict=True)
                if not picture.is_hidden
            ],
        )
        return [
            (in_cache(content, f"seed-{picture.settings.seed}.png"), _caption(picture, each=each))
            for picture, content in zip(row, contents, strict=True)
        ]


def random_seed() -> int:
    """Return a random seed."""
    return random.randint(*SEEDS)


def next_seed(seed: int | None, count: int) -> int:
    """Return the first seed after those of the current pictures."""
    return ((seed or 0) + count) % (SEEDS[1] + 1)


def _places(
    chosen: list[str], facts: list[Facts], strengths: Sequence[float | int], way: str
) -> dict[str, Any]:
    """Return the updates of the parts that depend on the chosen concepts."""
    names = " and ".join(one.name for one in facts)
    shown: dict[str, Any] = {name: gr.update(visible=False) for name in STRENGTHS}
    for name, one, strength in zip(STRENGTHS, facts, strengths, strict=False):
        shown[name] = gr.update(visible=True, label=f"Strength of {one.name}", value=strength)
    shown["way"] = gr.update(visible=len(facts) > 1, value=way)
    shown["concept_row"] = gr.update(visible=bool(facts), label=f"With {names}")
    return shown | {"facts": describe(facts), "placed": (chosen, way)}


def _caption(picture: Picture, *, each: bool) -> str:
    if picture.is_hidden:
        return "Hidden by the base's safety checker"
    if each and picture.settings.concepts:
        return picture.settings.concepts[0].name
    return f"seed {picture.settings.seed}"


def watch(
    progress: gr.Progress, name: str, stop: threading.Event, place: int = 0, parts: int = 1
) -> Watch:
    """Return callbacks that show on the page how far a drawing is.

    Args:
        progress: The progress bar.
        name: What is drawn.
        stop: Event that stops it.
        place: How many parts of the same number of passes are done.
        parts: How many there are.
    """

    def passes(done: int, total: int) -> None:
        progress((place * total + done, parts * total), desc=name)

    def waiting(before: int) -> None:
        progress(0, desc=f"Waiting: {before} ahead of you")

    return Watch(passes, waiting, stop)
