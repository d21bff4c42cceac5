"""What Play does with what a person does; their mistakes become one sentence on the page."""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from eval.protocols.drawing import file_digest
from loldu.errors import LoLDUError
from webui.backend import Backend, owner
from webui.drawing.facts import Facts, describe, facts_of, filled, open_words, suggestion
from webui.drawing.line import Cancelled
from webui.drawing.model import Use
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
from webui.page import told
from webui.tabs.album import in_cache

TOGETHER, EACH = "All in every picture", "One in each picture"
INSERT = "Insert "
_CHOOSE_OUTPUTS = 2 * MAX_CONCEPTS + 8


@dataclass(frozen=True)
class Drawn:
    """What the rows of a page show, but for the strengths."""

    task: Task
    chosen: list[str]
    way: str


class Handlers:
    """Answers everybody who looks at the page."""

    def __init__(self, backend: Backend) -> None:
        """Draw with what a server has."""
        self._backend = backend
        self._stops: dict[str | None, threading.Event] = {}

    def look(self, chosen: list[str] | None, request: gr.Request) -> tuple[Any, Any]:
        """Offer the concepts there are now, or tell where they come from; those chosen stay so."""
        entries = self._backend.library.list(owner(request))
        choices = gr.update(choices=[(entry.name, entry.id) for entry in entries])
        there = {entry.id for entry in entries}
        if not there.issuperset(chosen or ()):
            # Only then, for an answer comes late: what was chosen since is not to be undone.
            choices["value"] = [each for each in chosen or () if each in there]
        return choices, gr.update(visible=not entries)

    def arrive(self, request: gr.Request) -> tuple[Any, Any]:
        """Offer the concepts there are, the newest chosen."""
        newest = self._backend.library.list(owner(request))[:1]
        choices, hint = self.look([], request)
        return {**choices, "value": [entry.id for entry in newest]}, hint

    def take(self, concept: str | None, request: gr.Request) -> tuple[Any, Any]:
        """Choose the concept that another tab asks for."""
        choices, hint = self.look([], request)
        return ({**choices, "value": [concept]} if concept else choices), hint

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
        """Make room for concepts, and draw as the first one's run did.

        A strength stays with its concept, and a prompt of the person's own stays.
        """
        chosen = _unique(chosen)
        before, _ = placed
        if (chosen, way) == placed:  # what set them has placed them too
            return [gr.skip()] * _CHOOSE_OUTPUTS
        with told():
            facts = self._facts(chosen, request)
        strengths = dict(zip(before, (first, second, third, fourth), strict=False))
        own, same = suggestion(facts, each=_is_each(way, chosen)), gr.skip()
        is_new = bool(facts) and before[:1] != chosen[:1]
        return [
            *_places(chosen, facts, [strengths.get(each, 1.0) for each in chosen], way),
            own if (prompt or "") in ("", suggested) else same,  # None before its tab was opened
            own,
            facts[0].num_inference_steps or same if is_new else same,
            facts[0].guidance_scale or same if is_new else same,
        ]

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
        """Draw without the concepts, show that, and draw with them."""
        with told(), self._stoppable(request) as stop:
            if seed is None or steps is None or guidance is None:
                raise LoLDUError("Seed, steps and guidance each need a number.")
            chosen = _unique(chosen)
            facts = self._facts(chosen, request)
            uses = self._uses(chosen, [first, second, third, fourth], request)
            seeds = [(seed + index) % (SEEDS[1] + 1) for index in range(count)]
            prompts, seeds = _pictures(prompt, seeds, facts, each=_is_each(way, chosen))
            if max(map(len, (*prompts, negative_prompt))) > MAX_PROMPT:
                raise LoLDUError(f"The prompt has more than {MAX_PROMPT} letters: shorten it.")
            task = Task(prompts, seeds, negative_prompt, steps, float(guidance))
            drawn = Drawn(task, chosen, way)
            studio = self._backend.studio
            row = studio.draw_base(task, uses, _watch(progress, "Base", stop))
            base = self._kept(row, request)
            yield base, [], drawn if uses else None
            if uses:
                yield base, self._draw_concepts(drawn, uses, progress, stop, request), drawn

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
        """Draw once more with the same concepts at other strengths."""
        chosen = _unique(chosen)
        if drawn is None or (drawn.chosen, drawn.way) != (chosen, way):
            return
        with told(), self._stoppable(request) as stop:
            uses = self._uses(chosen, [first, second, third, fourth], request)
            yield self._draw_concepts(drawn, uses, progress, stop, request)

    def stop(self, request: gr.Request) -> None:
        """End what this page draws, before the next pass."""
        if stop := self._stops.get(request.session_hash):
            stop.set()
        else:
            gr.Info("Nothing is being drawn.", duration=3)

    def reuse(self, picture_id: str | None, request: gr.Request) -> list[Any]:
        """Set the controls as they were for a picture of the album."""
        with told():
            kept = self._backend.album.get(picture_id, owner(request))
            return self._as_drawn(read_png(kept.path), request)

    def reuse_file(self, path: str, request: gr.Request) -> list[Any]:
        """Set the controls as they were for a PNG that is uploaded."""
        with told():
            return self._as_drawn(read_png(Path(path)), request)

    def _as_drawn(self, settings: Settings, request: gr.Request) -> list[Any]:
        entries = self._backend.library.list(owner(request))
        ids = {file_digest(entry.path): entry.id for entry in entries}
        found = [used for used in settings.concepts if used.digest in ids]
        chosen = [ids[used.digest] for used in found]
        if lost := [used.name for used in settings.concepts if used not in found]:
            gr.Warning(
                f"{escape(' and '.join(lost))}, as the picture shows it, is not in your library: "
                "it was trained again or is not here."
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
        """What this page draws can be stopped; it draws one thing, and a newer one ends it."""
        if older := self._stops.get(request.session_hash):
            older.set()
        stop = self._stops[request.session_hash] = threading.Event()
        try:
            yield stop
        except Cancelled:
            gr.Info("Stopped.", duration=3)
        finally:
            if self._stops.get(request.session_hash) is stop:
                del self._stops[request.session_hash]

    def _kept(
        self, row: Sequence[Picture], request: gr.Request, *, each: bool = False
    ) -> list[tuple[str, str]]:
        """Keep pictures in the album, but for hidden ones, and give them to gradio to be shown."""
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


def insert(prompt: str, label: str) -> str:
    """The prompt with the words that a button names at its end."""
    return f"{prompt} {label.removeprefix(INSERT)}".strip()


def random_seed() -> int:
    """Any seed."""
    return random.randint(*SEEDS)


def next_seed(seed: int | None, count: int) -> int:
    """The first seed that the pictures of this one do not have."""
    return ((seed or 0) + count) % (SEEDS[1] + 1)


def _unique(chosen: list[str] | None) -> list[str]:
    return list(dict.fromkeys(chosen or ()))[:MAX_CONCEPTS]


def _is_each(way: str, chosen: Sequence[str]) -> bool:
    return way == EACH and len(chosen) > 1


def _places(
    chosen: list[str], facts: list[Facts], strengths: Sequence[float | int], way: str
) -> list[Any]:
    """Sliders and buttons for concepts, the way, the row, the facts, and whose place is which."""
    each = way == EACH and len(facts) > 1
    words = [" ".join(open_words(facts))] if each else [one.words for one in facts]
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
        *(
            gr.update(visible=False)
            if word is None
            else gr.update(visible=True, value=INSERT + word)
            for word in [*words, *missing][:MAX_CONCEPTS]
        ),
        gr.update(visible=len(facts) > 1, value=way),
        gr.update(visible=bool(facts), label=f"With {names}"),
        describe(facts),
        (chosen, way),
    ]


def _pictures(
    prompt: str, seeds: list[int], facts: list[Facts], *, each: bool
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The prompt and the seed of every picture; one of each concept from the same noise."""
    if not each:
        return (filled(prompt, facts),) * len(seeds), tuple(seeds)
    prompts = [filled(prompt, [one]) for one in facts]
    return tuple(prompts * len(seeds)), tuple(seed for seed in seeds for _ in facts)


def _caption(picture: Picture, *, each: bool) -> str:
    if picture.is_hidden:
        return "Hidden: the base's safety checker objects"
    if each and picture.settings.concepts:
        return picture.settings.concepts[0].name
    return f"seed {picture.settings.seed}"


def _watch(progress: gr.Progress, name: str, stop: threading.Event) -> Watch:
    def passes(done: int, total: int) -> None:
        progress((done, total), desc=name)

    def waiting(before: int) -> None:
        progress(0, desc=f"Waiting: {before} before you")

    return Watch(passes, waiting, stop)
