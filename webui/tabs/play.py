"""The Play tab: draws with and without concepts from the same noise."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from webui.backend import Backend
from webui.drawing.settings import GUIDANCE, MAX_CONCEPTS, MAX_STRENGTH, SEEDS, STEPS
from webui.page import CONCEPTS, QUIET, Page
from webui.tabs.album import AlbumParts, create_album
from webui.tabs.play_handlers import EACH, TOGETHER, PlayHandlers, insert, next_seed, random_seed

_MOST_AT_ONCE = 16
"""Drawings that wait in the studio's queue; further ones wait in gradio's."""


@dataclass(frozen=True)
class Controls:
    """Components of the left side; `placed` holds the concepts that the sliders belong to."""

    concepts: gr.Dropdown
    way: gr.Radio
    strengths: list[gr.Slider]
    prompt: gr.Textbox
    inserts: list[gr.Button]
    negative_prompt: gr.Textbox
    count: gr.Slider
    seed: gr.Number
    random: gr.Button
    next: gr.Button
    steps: gr.Number
    guidance: gr.Number
    draw: gr.Button
    stop: gr.Button
    placed: gr.State


@dataclass(frozen=True)
class Rows:
    """Components of the right side."""

    base: gr.Gallery
    concepts: gr.Gallery
    facts: gr.HTML


def create_play(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            with gr.Group(visible=False) as hint:
                gr.Markdown(
                    "You have no concept yet: train one first, or draw with the base alone.",
                    padding=True,
                )
                teach = gr.Button("Train a concept")
            controls = _controls()
        with gr.Column(scale=2, min_width=320):
            rows = Rows(_row("Base"), _row("With the concept", visible=False), gr.HTML())
    handlers = PlayHandlers(backend)
    teach.click(lambda: gr.Tabs(selected=CONCEPTS), None, page.tabs, **QUIET)
    _connect_concepts(handlers, page, tab, controls, rows, hint)
    drawings = _connect_drawing(handlers, controls, rows)
    album = create_album(backend.album, page, tab, drawings)
    _connect_reuse(handlers, album, controls, rows)


def _controls() -> Controls:
    concepts = gr.Dropdown(
        multiselect=True,
        max_choices=MAX_CONCEPTS,
        label="Concepts",
        info=f"Up to {MAX_CONCEPTS}; with none, the base draws alone",
    )
    way = gr.Radio(
        [TOGETHER, EACH],
        value=TOGETHER,
        label="Several concepts",
        info="With one in each, {token} and {class} become the words of that picture's concept",
        visible=False,
    )
    strengths = [
        gr.Slider(
            *(0, MAX_STRENGTH, 1),
            step=0.05,
            label=f"Strength {place}",
            info="0 is the base, 1 is as trained" if place == 1 else None,
            visible=False,
        )
        for place in range(1, MAX_CONCEPTS + 1)
    ]
    prompt = gr.Textbox(label="Prompt", lines=2)
    with gr.Row(elem_classes="inserts"):
        inserts = [
            gr.Button(f"Insert {place}", size="sm", min_width=80, visible=False)
            for place in range(1, MAX_CONCEPTS + 1)
        ]
    negative_prompt = gr.Textbox(label="Negative prompt", info="What to keep out of the picture")
    count = gr.Slider(1, 8, 4, step=1, precision=0, label="Pictures")
    with gr.Row(elem_classes="seed"):
        low, high = SEEDS
        seed = gr.Number(
            0, label="First seed", precision=0, minimum=low, maximum=high, min_width=120
        )
        any_seed = gr.Button("Random seed", size="sm", min_width=80)
        following = gr.Button("Next seeds", size="sm", min_width=80)
    with gr.Row():
        low, high = STEPS
        steps = gr.Number(20, label="Steps", precision=0, minimum=low, maximum=high, min_width=80)
        low, high = GUIDANCE
        guidance = gr.Number(3, label="Guidance", step=0.5, minimum=low, maximum=high, min_width=80)
    with gr.Row():
        draw = gr.Button("Draw", variant="primary", scale=3, min_width=120)
        stop = gr.Button("Stop", scale=1, min_width=80)
    return Controls(
        *(concepts, way, strengths, prompt, inserts, negative_prompt, count),
        *(seed, any_seed, following, steps, guidance, draw, stop, gr.State(([], TOGETHER))),
    )


def _row(label: str, *, visible: bool = True) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        format="png",
        columns=4,
        rows=1,
        height="auto",
        elem_classes="pictures",
        buttons=["download", "fullscreen"],
        interactive=False,
        visible=visible,
    )


def _connect_concepts(
    handlers: PlayHandlers, page: Page, tab: gr.Tab, c: Controls, rows: Rows, hint: gr.Group
) -> None:
    suggested = gr.State("")
    inputs = [c.concepts, c.way, c.placed, c.prompt, suggested, *c.strengths]
    outputs = [*_places(c, rows), c.prompt, suggested, c.steps, c.guidance]
    offered = [c.concepts, hint]
    looks = [
        page.demo.load(handlers.arrive, None, offered, api_name="concepts"),
        tab.select(handlers.look, c.concepts, offered, **QUIET),
        page.concept.change(handlers.take, page.concept, offered, **QUIET),
    ]
    for trigger in (c.concepts.input, c.way.input, *(look.then for look in looks)):
        trigger(handlers.choose, inputs, outputs, **QUIET)
    for button in c.inserts:
        button.click(insert, [c.prompt, button], c.prompt, **QUIET)
    c.random.click(random_seed, None, c.seed, **QUIET)
    c.next.click(next_seed, [c.seed, c.count], c.seed, **QUIET)


def _connect_drawing(handlers: PlayHandlers, c: Controls, rows: Rows) -> list[Dependency]:
    """Connect the events that draw, and return them."""
    drawn = gr.State()
    chosen = [c.concepts, c.way, *c.strengths]
    line: Any = {"concurrency_id": "drawing", "concurrency_limit": _MOST_AT_ONCE}
    draw = gr.on(
        [c.draw.click, c.prompt.submit, c.negative_prompt.submit],
        handlers.draw,
        [*chosen, c.prompt, c.negative_prompt, c.seed, c.count, c.steps, c.guidance],
        [rows.base, rows.concepts, drawn],
        api_name="draw",
        show_progress_on=[rows.base, rows.concepts],
        **line,
    )
    redraw = gr.on(
        [strength.release for strength in c.strengths],
        handlers.redraw,
        [drawn, *chosen],
        rows.concepts,
        api_visibility="private",
        trigger_mode="always_last",
        **line,
    )
    c.stop.click(handlers.stop, None, None, queue=False, **QUIET)
    return [draw, redraw]


def _connect_reuse(handlers: PlayHandlers, album: AlbumParts, c: Controls, rows: Rows) -> None:
    outputs = [c.concepts, *_places(c, rows)]
    outputs += [c.prompt, c.negative_prompt, c.seed, c.steps, c.guidance]
    album.reuse.click(handlers.reuse, album.chosen, outputs, **QUIET)
    album.file.upload(handlers.reuse_file, album.file, outputs, **QUIET)


def _places(c: Controls, rows: Rows) -> list[Component]:
    """Return the components that depend on the chosen concepts."""
    return [*c.strengths, *c.inserts, c.way, rows.concepts, rows.facts, c.placed]
