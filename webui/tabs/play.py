"""The Play tab: draws with and without concepts from the same noise."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.events import Dependency

from webui.backend import Backend, visitor
from webui.drawing.canvas import canvas, chosen
from webui.drawing.settings import GUIDANCE, MAX_CONCEPTS, MAX_STRENGTH, SEEDS, STEPS
from webui.page import ANNOUNCED, CONCEPTS, QUIET, Page
from webui.style import content_of
from webui.tabs.album import AlbumParts, create_album
from webui.tabs.play_handlers import EACH, TOGETHER, PlayHandlers, next_seed, random_seed

_MOST_AT_ONCE = 16
"""Drawings that wait in the studio's queue; further ones wait in gradio's."""


@dataclass(frozen=True)
class Controls:
    """Components that people set; `placed` holds the concepts that the sliders belong to."""

    concepts: gr.CheckboxGroup
    faces: gr.HTML
    way: gr.Radio
    strengths: list[gr.Slider]
    prompt: gr.Textbox
    note: gr.HTML
    problem: gr.HTML
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

    canvas: gr.HTML
    base: gr.Gallery
    concepts: gr.Gallery
    facts: gr.HTML


def create_play(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    with gr.Column(visible=False) as hint:
        gr.HTML(
            '<div class="empty-state"><h2>No concept yet</h2><p>Teach one from 3 to 5 pictures, '
            "or draw with the base alone.</p></div>"
        )
        teach = gr.Button("Teach a concept", size="sm")
    with gr.Row(elem_classes="play"):
        with gr.Column(scale=4, min_width=300):
            concepts = _concepts()
            with gr.Accordion("Settings", open=False):
                settings = _settings()
            with gr.Accordion("About the concept", open=False):
                facts = gr.HTML()
        with gr.Column(scale=5, min_width=300):
            shown = gr.HTML(canvas(None, None, 0), js_on_load=content_of("canvas.js"))
        with gr.Column(scale=2, min_width=200):
            base, adapted = _row("Base"), _row("With the concept", visible=False)
        rows = Rows(shown, base, adapted, facts)
    with gr.Column(elem_classes=["bar", "asking"]):
        bar = _bar()
    controls = Controls(**concepts, **settings, **bar, placed=gr.State(([], TOGETHER)))
    handlers = PlayHandlers(backend)
    teach.click(lambda: gr.Tabs(selected=CONCEPTS), None, page.tabs, **QUIET)
    recalled = _connect_draft(backend, page, controls.prompt)
    _connect_concepts(handlers, page, tab, controls, rows, hint, recalled)
    drawings = _connect_drawing(handlers, controls, rows)
    _connect_canvas(rows)
    album = create_album(backend.album, page, tab, drawings)
    _connect_reuse(handlers, album, controls, rows)


def _concepts() -> dict[str, Any]:
    concepts = gr.CheckboxGroup(
        [],
        label="Concepts",
        info=f"Up to {MAX_CONCEPTS}. Their words go into the prompt.",
        elem_classes="chips",
    )
    faces = gr.HTML()
    way = gr.Radio(
        [TOGETHER, EACH],
        value=TOGETHER,
        label="Several concepts",
        info="With one in each, every picture is asked for with its own concept's words",
        visible=False,
    )
    strengths = [
        gr.Slider(
            *(0, MAX_STRENGTH, 1),
            step=0.05,
            label=f"Strength {place}",
            info="0 is the base, 1 is as taught" if place == 1 else None,
            elem_classes="strength",
            visible=False,
        )
        for place in range(1, MAX_CONCEPTS + 1)
    ]
    return {"concepts": concepts, "faces": faces, "way": way, "strengths": strengths}


def _settings() -> dict[str, Any]:
    count = gr.Slider(1, 8, 4, step=1, precision=0, label="Pictures")
    with gr.Row():
        low, high = STEPS
        steps = gr.Number(20, label="Steps", precision=0, minimum=low, maximum=high, min_width=80)
        low, high = GUIDANCE
        guidance = gr.Number(3, label="Guidance", step=0.5, minimum=low, maximum=high, min_width=80)
    negative_prompt = gr.Textbox(label="Negative prompt", info="What to keep out of the picture")
    with gr.Row(elem_classes="seed"):
        low, high = SEEDS
        seed = gr.Number(
            0, label="First seed", precision=0, minimum=low, maximum=high, min_width=120
        )
        any_seed = gr.Button("Random seed", size="sm", min_width=80)
        following = gr.Button("Next seeds", size="sm", min_width=80)
    return {
        "negative_prompt": negative_prompt,
        "count": count,
        "seed": seed,
        "random": any_seed,
        "next": following,
        "steps": steps,
        "guidance": guidance,
    }


def _bar() -> dict[str, Any]:
    """Lay out the prompt, what there is to say about it, and the buttons."""
    problem = gr.HTML(js_on_load=ANNOUNCED)
    with gr.Row(elem_classes="inserts"):
        note = gr.HTML(js_on_load=ANNOUNCED)
        inserts = [
            gr.Button(f"Add {place}", size="sm", min_width=80, scale=0, visible=False)
            for place in range(1, MAX_CONCEPTS + 1)
        ]
    with gr.Row(elem_classes="ask"):
        prompt = gr.Textbox(
            label="Prompt",
            show_label=False,
            container=False,
            lines=1,
            max_lines=4,
            placeholder="What should be in the picture?",
            scale=6,
        )
        draw = gr.Button("Draw", variant="primary", scale=1, min_width=90)
        stop = gr.Button("Stop", scale=0, min_width=70)
    return {
        "prompt": prompt,
        "note": note,
        "problem": problem,
        "inserts": inserts,
        "draw": draw,
        "stop": stop,
    }


def _row(label: str, *, visible: bool = True) -> gr.Gallery:
    return gr.Gallery(
        label=label,
        format="png",
        type="filepath",
        columns=2,
        rows=1,
        height="auto",
        allow_preview=False,
        elem_classes="pictures",
        buttons=["download", "fullscreen"],
        interactive=False,
        visible=visible,
    )


def _connect_draft(backend: Backend, page: Page, prompt: gr.Textbox) -> Dependency:
    """Keep the prompt that a person types for a reload; return the event that shows it again."""

    def recall(request: gr.Request) -> Any:  # noqa: ANN401
        return backend.drafts.prompt(visitor(request)) or gr.skip()

    def remember(text: str | None, request: gr.Request) -> None:
        backend.drafts.keep_prompt(visitor(request), text or "")

    prompt.input(remember, prompt, None, trigger_mode="always_last", **QUIET)
    return page.demo.load(recall, None, prompt, **QUIET)


def _connect_concepts(
    handlers: PlayHandlers,
    page: Page,
    tab: gr.Tab,
    c: Controls,
    rows: Rows,
    hint: gr.Column,
    recalled: Dependency,
) -> None:
    suggested = gr.State("")
    inputs = [c.concepts, c.way, c.placed, c.prompt, suggested, *c.strengths]
    outputs = [*_places(c, rows), c.prompt, suggested, c.steps, c.guidance]
    offered = [c.concepts, hint]
    looks = [
        recalled.then(handlers.arrive, None, offered, api_name="concepts"),
        tab.select(handlers.look, c.concepts, offered, **QUIET),
        page.concept.change(handlers.take, page.concept, offered, **QUIET),
    ]
    for trigger in (c.concepts.input, c.way.input, *(look.then for look in looks)):
        trigger(handlers.choose, inputs, outputs, **QUIET)
    for look in looks:
        look.then(handlers.faces, None, c.faces, **QUIET)
    c.concepts.input(handlers.at_most, c.concepts, c.concepts, **QUIET)
    asked, noted = [c.prompt, c.concepts, c.way], [c.note, *c.inserts]
    gr.on(
        [c.prompt.change, c.concepts.change, c.way.change],
        handlers.note,
        asked,
        noted,
        trigger_mode="always_last",
        **QUIET,
    )
    c.prompt.input(lambda: "", None, c.problem, **QUIET)
    for place, button in enumerate(c.inserts):
        button.click(handlers.insert(place), asked, c.prompt, **QUIET)
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
    for drawing in (draw, redraw):
        drawing.success(lambda: "", None, c.problem, **QUIET)
        drawing.failure(handlers.why, None, c.problem, **QUIET)
    c.stop.click(handlers.stop, None, None, queue=False, **QUIET)
    return [draw, redraw]


def _connect_canvas(rows: Rows) -> None:
    """Show the chosen picture of both rows on the canvas, and the new one after a drawing."""
    index = gr.State(0)
    shown: list[Component] = [rows.base, rows.concepts, index]
    for row in (rows.base, rows.concepts):
        row.select(chosen, None, index, **QUIET).then(canvas, shown, rows.canvas, **QUIET)
    drawn = [rows.base.change, rows.concepts.change]
    gr.on(drawn, canvas, shown, rows.canvas, trigger_mode="always_last", **QUIET)


def _connect_reuse(handlers: PlayHandlers, album: AlbumParts, c: Controls, rows: Rows) -> None:
    outputs = [c.concepts, *_places(c, rows)]
    outputs += [c.prompt, c.negative_prompt, c.seed, c.steps, c.guidance]
    album.reuse.click(handlers.reuse, album.chosen, outputs, **QUIET)
    album.file.upload(handlers.reuse_file, album.file, outputs, **QUIET)


def _places(c: Controls, rows: Rows) -> list[Component]:
    """Return the components that depend on the chosen concepts."""
    return [*c.strengths, c.way, rows.concepts, rows.facts, c.placed]
