"""Event handlers of the Play tab."""

import random
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from eval.protocols.drawing import file_digest
from loldu.errors import LoLDUError
from webui.backend import Backend, owner
from webui.drawing.canvas import faces
from webui.drawing.facts import Facts, describe, facts_of, filled, suggestion
from webui.drawing.model import Use
from webui.drawing.queue import Cancelled
from webui.drawing.settings import (
    MAX_CONCEPTS,
    MAX_PROMPT,
    SEEDS,
    Settings,
    base_name,
    png_bytes,
    read_png,
)
from webui.drawing.studio import Picture, Task, Watch
from webui.drawing.words import describe_prompt, for_one, lacking, put, reworded
from webui.page import errors_on_page
from webui.served import in_cache

TOGETHER, EACH = "All in every picture", "One in each picture"
_CHOOSE_OUTPUTS = MAX_CONCEPTS + 8


@dataclass(frozen=True)
class Drawn:
    """Settings of the pictures that a page shows, without the strengths."""

    task: Task
    chosen: list[str]
    way: str


class PlayHandlers:
    """Event handlers of the Play tab, for everybody who uses the page.

    Gradio passes every component as an argument of its own, so some handlers have more than 8.
    """

    def __init__(self, backend: Backend) -> None:
        """Draw with the model and the concepts of `backend`."""
        self._backend = backend
        self._stops: dict[str | None, threading.Event] = {}
        self._failures: dict[str | None, str] = {}

    def look(self, chosen: list[str] | None, request: gr.Request) -> tuple[Any, Any]:
        """List the concepts, or show where they come from; chosen ones stay chosen."""
        entries = self._backend.library.list(owner(request))
        choices = gr.update(choices=[(entry.name, entry.id) for entry in entries])
        there = {entry.id for entry in entries}
        if not there.issuperset(chosen or ()):
            # Only then: this answer may arrive after a newer choice, and must not undo it.
            choices["value"] = [each for each in chosen or () if each in there]
        return choices, gr.update(visible=not entries)

    def arrive(self, request: gr.Request) -> tuple[Any, Any]:
        """List the concepts and choose the newest."""
        newest = self._backend.library.list(owner(request))[:1]
        choices, hint = self.look([], request)
        return {**choices, "value": [entry.id for entry in newest]}, hint

    def take(self, concept: str | None, request: gr.Request) -> tuple[Any, Any]:
        """Choose the concept that another tab has opened."""
        choices, hint = self.look([], request)
        return ({**choices, "value": [concept]} if concept else choices), hint

    def faces(self, request: gr.Request) -> str:
        """Return the pictures of the chips as a style sheet."""
        return faces(self._backend.library.list(owner(request)))

    # Gradio passes one argument for each input component.
    def choose(
        self,
        chosen: list[str] | None,
        way: str,
        placed: tuple[list[str], str],
        prompt: str | None,
        suggested: str,
        first: float | int,
        second: float | int,
        third: float | int,
        fourth: float | int,
        request: gr.Request,
    ) -> list[Any]:
        """Show the controls of the chosen concepts, and set the first one's drawing options.

        Strengths stay with their concepts. In a prompt that the person wrote, the words of the
        concepts come and go, and all else stays.
        """
        chosen = _unique(chosen)
        before, _ = placed
        if (chosen, way) == placed:  # already shown
            return [gr.skip()] * _CHOOSE_OUTPUTS
        with errors_on_page():
            facts = self._facts(chosen, request)
            left = self._facts_there([each for each in before if each not in chosen], request)
        strengths = dict(zip(before, (first, second, third, fourth), strict=False))
        own, same = suggestion(facts, each=_is_each(way, chosen)), gr.skip()
        is_new = bool(facts) and before[:1] != chosen[:1]
        return [
            *_places(chosen, facts, [strengths.get(each, 1.0) for each in chosen], way),
            own if (prompt or "") in ("", suggested) else reworded(prompt or "", facts, left),
            own,
            facts[0].num_inference_steps or same if is_new else same,
            facts[0].guidance_scale or same if is_new else same,
        ]

    def at_most(self, chosen: list[str] | None) -> Any:  # noqa: ANN401
        """Take back a choice that is one too many."""
        if len(chosen or ()) <= MAX_CONCEPTS:
            return gr.skip()
        gr.Info(f"At most {MAX_CONCEPTS} concepts at once.", duration=4)
        return _unique(chosen)

    def note(
        self, prompt: str | None, chosen: list[str] | None, way: str, request: gr.Request
    ) -> list[Any]:
        """Say what of the prompt is read, and offer the words that it lacks."""
        chosen, prompt = _unique(chosen), prompt or ""
        facts = self._facts_there(chosen, request)
        missing = lacking(prompt, facts, each=_is_each(way, chosen)) if prompt.strip() else []
        buttons = [
            gr.update(visible=True, value=f"Add {one.words}")
            if one in missing
            else gr.update(visible=False)
            for one in facts
        ]
        hidden = [gr.update(visible=False)] * (MAX_CONCEPTS - len(buttons))
        return [describe_prompt(self._backend.base, prompt, facts, missing), *buttons, *hidden]

    def insert(self, place: int) -> Callable[..., str]:
        """Return a handler that puts the words of the concept at a place into the prompt."""

        def insert(
            prompt: str | None, chosen: list[str] | None, way: str, request: gr.Request
        ) -> str:
            facts = self._facts_there(_unique(chosen), request)
            return put(prompt or "", facts[place], facts) if place < len(facts) else prompt or ""

        return insert

    def why(self, request: gr.Request) -> str:
        """Return why the last drawing of this page failed, to stand beside the prompt."""
        sentence = self._failures.pop(request.session_hash, "The picture could not be drawn.")
        return f'<p class="problem">{escape(sentence)}</p>'

    # Gradio passes one argument for each input component.
    def draw(
        self,
        chosen: list[str] | None,
        way: str,
        first: float | int,
        second: float | int,
        third: float | int,
        fourth: float | int,
        prompt: str,
        negative_prompt: str,
        seed: int | None,
        count: int,
        steps: int | None,
        guidance: float | int | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio looks for it here
    ) -> Iterator[tuple[Any, Any, Any]]:
        """Draw with the base, show its pictures, then draw with the concepts."""
        with errors_on_page(), self._stoppable(request) as stop:
            prompt, negative_prompt = prompt or "", negative_prompt or ""  # None until shown
            if not prompt.strip():
                raise LoLDUError("The prompt is empty: say what should be in the picture.")
            if seed is None or steps is None or guidance is None:
                raise LoLDUError("Seed, steps and guidance each need a number.")
            chosen = _unique(chosen)
            facts = self._facts(chosen, request)
            uses = self._uses(chosen, [first, second, third, fourth], request)
            seeds = [(seed + index) % (SEEDS[1] + 1) for index in range(count)]
            prompts, seeds = _pictures(prompt, seeds, facts, each=_is_each(way, chosen))
            if max(map(len, (*prompts, negative_prompt))) > MAX_PROMPT:
                raise LoLDUError(f"The prompt has more than {MAX_PROMPT} characters: shorten it.")
            task = Task(prompts, seeds, negative_prompt, steps, float(guidance))
            drawn = Drawn(task, chosen, way)
            studio = self._backend.studio
            row = studio.draw_base(task, uses, _watch(progress, "Base", stop))
            base = self._kept(row, request)
            yield base, [], drawn if uses else None
            if uses:
                yield base, self._draw_concepts(drawn, uses, progress, stop, request), drawn

    # Gradio passes one argument for each input component.
    def redraw(
        self,
        drawn: Drawn | None,
        chosen: list[str] | None,
        way: str,
        first: float | int,
        second: float | int,
        third: float | int,
        fourth: float | int,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio looks for it here
    ) -> Iterator[Any]:
        """Draw the same concepts again at other strengths."""
        chosen = _unique(chosen)
        if drawn is None or (drawn.chosen, drawn.way) != (chosen, way):
            return
        with errors_on_page(), self._stoppable(request) as stop:
            uses = self._uses(chosen, [first, second, third, fourth], request)
            yield self._draw_concepts(drawn, uses, progress, stop, request)

    def stop(self, request: gr.Request) -> None:
        """Stop the drawing of this page before its next pass."""
        if stop := self._stops.get(request.session_hash):
            stop.set()
        else:
            gr.Info("Nothing is being drawn.", duration=3)

    def reuse(self, picture_id: str | None, request: gr.Request) -> list[Any]:
        """Set the controls to the settings of a picture in the album."""
        with errors_on_page():
            kept = self._backend.album.get(picture_id, owner(request))
            return self._as_drawn(read_png(kept.path), request)

    def reuse_file(self, path: str, request: gr.Request) -> list[Any]:
        """Set the controls to the settings in an uploaded PNG."""
        with errors_on_page():
            return self._as_drawn(read_png(Path(path)), request)

    def _as_drawn(self, settings: Settings, request: gr.Request) -> list[Any]:
        entries = self._backend.library.list(owner(request))
        ids = {file_digest(entry.path): entry.id for entry in entries}
        found = [used for used in settings.concepts if used.digest in ids]
        chosen = [ids[used.digest] for used in found]
        if lost := [used.name for used in settings.concepts if used not in found]:
            gr.Warning(
                f"Your library does not have {escape(' and '.join(lost))} as used in the picture: "
                "it was trained again or removed."
            )
        if settings.base_name != base_name(self._backend.base):
            gr.Warning(f"The picture was drawn with another base ({escape(settings.base_name)}).")
        offered, _ = self.look(chosen, request)
        return [
            {**offered, "value": chosen},
            *_places(
                chosen, self._facts(chosen, request), [used.strength for used in found], TOGETHER
            ),
            *(settings.prompt, settings.negative_prompt, settings.seed),
            *(settings.num_inference_steps, settings.guidance_scale),
        ]

    def _draw_concepts(
        self,
        drawn: Drawn,
        uses: list[Use],
        progress: gr.Progress,
        stop: threading.Event,
        request: gr.Request,
    ) -> list[tuple[str, str]]:
        watch = _watch(progress, " and ".join(use.entry.name for use in uses), stop)
        each = _is_each(drawn.way, drawn.chosen)
        row = self._backend.studio.draw_concepts(drawn.task, uses, watch, each=each)
        return self._kept(row, request, each=each)

    def _facts(self, chosen: list[str], request: gr.Request) -> list[Facts]:
        library = self._backend.library
        return [facts_of(library.get(each, owner(request))) for each in chosen]

    def _facts_there(self, chosen: list[str], request: gr.Request) -> list[Facts]:
        """Return the facts of those concepts that can be read."""
        facts: list[Facts] = []
        for each in chosen:
            with suppress(LoLDUError):
                facts += self._facts([each], request)
        return facts

    def _uses(
        self, chosen: list[str], strengths: Sequence[float | int], request: gr.Request
    ) -> list[Use]:
        library = self._backend.library
        return [
            Use(library.get(each, owner(request)), strength)
            for each, strength in zip(chosen, strengths, strict=False)
        ]

    @contextmanager
    def _stoppable(self, request: gr.Request) -> Iterator[threading.Event]:
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


def _unique(chosen: list[str] | None) -> list[str]:
    return list(dict.fromkeys(chosen or ()))[:MAX_CONCEPTS]


def _is_each(way: str, chosen: Sequence[str]) -> bool:
    return way == EACH and len(chosen) > 1


def _places(
    chosen: list[str], facts: list[Facts], strengths: Sequence[float | int], way: str
) -> list[Any]:
    """Return the updates of the sliders, mode, gallery, facts and `placed`."""
    missing = [None] * MAX_CONCEPTS
    names = " and ".join(one.name for one in facts)
    return [
        *(
            gr.update(visible=False)
            if one is None
            else gr.update(visible=True, label=f"Strength of {one.name}", value=strength)
            for one, strength in zip(
                [*facts, *missing][:MAX_CONCEPTS], [*strengths, *missing], strict=False
            )
        ),
        gr.update(visible=len(facts) > 1, value=way),
        gr.update(visible=bool(facts), label=f"With {names}"),
        describe(facts),
        (chosen, way),
    ]


def _pictures(
    prompt: str, seeds: list[int], facts: list[Facts], *, each: bool
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the prompt and seed of every picture; concepts share the seeds."""
    if not each:
        return (filled(prompt, facts),) * len(seeds), tuple(seeds)
    prompts = [filled(for_one(prompt, one, facts), [one]) for one in facts]
    return tuple(prompts * len(seeds)), tuple(seed for seed in seeds for _ in facts)


def _caption(picture: Picture, *, each: bool) -> str:
    if picture.is_hidden:
        return "Hidden by the base's safety checker"
    if each and picture.settings.concepts:
        return picture.settings.concepts[0].name
    return f"seed {picture.settings.seed}"


def _watch(progress: gr.Progress, name: str, stop: threading.Event) -> Watch:
    def passes(done: int, total: int) -> None:
        progress((done, total), desc=name)

    def waiting(before: int) -> None:
        progress(0, desc=f"Waiting: {before} ahead of you")

    return Watch(passes, waiting, stop)
