"""The Play tab: draws with and without concepts from the same noise."""

from typing import Any

import gradio as gr
from gradio.events import Dependency

from webui.backend import Backend, visitor
from webui.drawing.asked import ASKED, EACH, STRENGTHS, TOGETHER
from webui.drawing.canvas import canvas, chosen
from webui.drawing.settings import GUIDANCE, MAX_CONCEPTS, MAX_STRENGTH, SEEDS
from webui.drawing.settings import STEPS as LIMITS
from webui.page import ANNOUNCED, CONCEPTS, QUIET, Page
from webui.style import content_of
from webui.tabs.album import AlbumParts, create_album
from webui.tabs.grid import connect_grid, create_grid
from webui.tabs.play_handlers import DRAWING, INSERTS, PlayHandlers, next_seed, random_seed

_PLACED = (*STRENGTHS, "way", "concept_row", "facts", "placed", "step", "grid_about", "grid")
"""Parts that depend on the chosen concepts."""
Parts = dict[str, Any]
"""Components of the tab by name: a new one is a line where it is laid out, and where it is used."""


def create_play(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    parts: Parts = {"placed": gr.State(([], TOGETHER)), "suggested": gr.State("")}
    parts["drawn"] = gr.State()
    with gr.Column(visible=False) as parts["hint"]:
        gr.HTML(
            '<div class="empty-state"><h2>No concept yet</h2><p>Teach one from 3 to 5 pictures, '
            "or draw with the base alone.</p></div>"
        )
        teach = gr.Button("Teach a concept", size="sm")
    with gr.Row(elem_classes="play"):
        with gr.Column(scale=4, min_width=300):
            _concepts(parts)
            with gr.Accordion("Settings", open=False):
                _settings(parts)
            with gr.Accordion("About the concept", open=False):
                parts["facts"] = gr.HTML()
        with gr.Column(scale=5, min_width=300):
            parts["canvas"] = gr.HTML(canvas(None, None, 0), js_on_load=content_of("canvas.js"))
        with gr.Column(scale=2, min_width=200):
            parts["base_row"] = _row("Base")
            parts["concept_row"] = _row("With the concept", visible=False)
    create_grid(parts)
    with gr.Column(elem_classes=["bar", "asking"]):
        _bar(parts)
    handlers, asked = PlayHandlers(backend, parts), {name: parts[name] for name in ASKED}
    teach.click(lambda: gr.Tabs(selected=CONCEPTS), None, page.tabs, **QUIET)
    recalled = _connect_draft(backend, page, parts["prompt"])
    _connect_concepts(handlers, page, tab, parts, asked, recalled)
    picked, drawn_grid = connect_grid(backend, handlers, parts, asked)
    drawings = _connect_drawing(handlers, parts, asked, picked)
    for drawing in (*drawings, drawn_grid):
        drawing.success(lambda: "", None, parts["problem"], **QUIET)
        drawing.failure(handlers.why, None, parts["problem"], **QUIET)
    _connect_canvas(parts)
    album = create_album(backend.album, page, tab, [*drawings, drawn_grid])
    _connect_reuse(handlers, album, parts)


def _concepts(parts: Parts) -> None:
    parts["concepts"] = gr.CheckboxGroup(
        [],
        label="Concepts",
        info=f"Up to {MAX_CONCEPTS}. Their words go into the prompt.",
        elem_classes="chips",
    )
    parts["faces"] = gr.HTML()
    parts["way"] = gr.Radio(
        [TOGETHER, EACH],
        value=TOGETHER,
        label="Several concepts",
        info="With one in each, every picture is asked for with its own concept's words",
        visible=False,
    )
    for place, name in enumerate(STRENGTHS, 1):
        parts[name] = gr.Slider(
            *(0, MAX_STRENGTH, 1),
            step=0.05,
            label=f"Strength {place}",
            info="0 is the base, 1 is as taught" if place == 1 else None,
            elem_classes="strength",
            visible=False,
        )
    parts["step"] = gr.Dropdown([], label="Step of its training", visible=False)


def _settings(parts: Parts) -> None:
    parts["count"] = gr.Slider(1, 8, 4, step=1, precision=0, label="Pictures")
    with gr.Row():
        low, high = LIMITS
        parts["steps"] = gr.Number(
            20, label="Steps", precision=0, minimum=low, maximum=high, min_width=80
        )
        low, high = GUIDANCE
        parts["guidance"] = gr.Number(
            3, label="Guidance", step=0.5, minimum=low, maximum=high, min_width=80
        )
    parts["negative_prompt"] = gr.Textbox(
        label="Negative prompt", info="What to keep out of the picture"
    )
    with gr.Row(elem_classes="seed"):
        low, high = SEEDS
        parts["seed"] = gr.Number(
            0, label="First seed", precision=0, minimum=low, maximum=high, min_width=120
        )
        parts["random"] = gr.Button("Random seed", size="sm", min_width=80)
        parts["next"] = gr.Button("Next seeds", size="sm", min_width=80)


def _bar(parts: Parts) -> None:
    """Lay out the prompt, what there is to say about it, and the buttons."""
    parts["problem"] = gr.HTML(js_on_load=ANNOUNCED)
    with gr.Row(elem_classes="inserts"):
        parts["note"] = gr.HTML(js_on_load=ANNOUNCED)
        for name in INSERTS:
            parts[name] = gr.Button(name, size="sm", min_width=80, scale=0, visible=False)
    with gr.Row(elem_classes="ask"):
        parts["prompt"] = gr.Textbox(
            label="Prompt",
            show_label=False,
            container=False,
            lines=1,
            max_lines=4,
            placeholder="What should be in the picture?",
            scale=6,
        )
        parts["draw"] = gr.Button("Draw", variant="primary", scale=1, min_width=90)
        parts["stop"] = gr.Button("Stop", scale=0, min_width=70)


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
    parts: Parts,
    asked: dict[str, Any],
    recalled: Dependency,
) -> None:
    concepts, way, prompt = parts["concepts"], parts["way"], parts["prompt"]
    outputs = [parts[name] for name in (*_PLACED, "prompt", "suggested", "steps", "guidance")]
    offered = [concepts, parts["hint"]]
    looks = [
        recalled.then(handlers.arrive, None, offered, api_name="concepts"),
        tab.select(handlers.look, concepts, offered, **QUIET),
        page.concept.change(handlers.take, page.concept, offered, **QUIET),
    ]
    for trigger in (concepts.input, way.input, *(look.then for look in looks)):
        trigger(handlers.choose, inputs_kwargs=asked, outputs=outputs, **QUIET)
    for look in looks:
        look.then(handlers.faces, None, parts["faces"], **QUIET)
    concepts.input(handlers.at_most, concepts, concepts, **QUIET)
    gr.on(
        [prompt.change, concepts.change, way.change],
        handlers.note,
        inputs_kwargs=asked,
        outputs=[parts[name] for name in ("note", *INSERTS)],
        trigger_mode="always_last",
        **QUIET,
    )
    prompt.input(lambda: "", None, parts["problem"], **QUIET)
    for place, name in enumerate(INSERTS):
        parts[name].click(handlers.insert(place), inputs_kwargs=asked, outputs=prompt, **QUIET)
    parts["random"].click(random_seed, None, parts["seed"], **QUIET)
    parts["next"].click(next_seed, [parts["seed"], parts["count"]], parts["seed"], **QUIET)


def _connect_drawing(
    handlers: PlayHandlers, parts: Parts, asked: dict[str, Any], picked: Dependency
) -> list[Dependency]:
    """Connect the events that draw, and return them.

    Args:
        handlers: Event handlers.
        parts: Components of the tab.
        asked: Those whose values the handlers get.
        picked: Sets the controls to a picture of the grid.
    """
    base, concepts = parts["base_row"], parts["concept_row"]
    draw = gr.on(
        [parts["draw"].click, parts["prompt"].submit, parts["negative_prompt"].submit],
        handlers.draw,
        inputs_kwargs=asked,
        outputs=[base, concepts, parts["drawn"]],
        api_name="draw",
        show_progress_on=[base, concepts],
        **DRAWING,
    )
    again: dict[str, Any] = {"inputs_kwargs": asked, "outputs": concepts, **DRAWING}
    again["api_visibility"] = "private"
    redraw = gr.on(
        [*(parts[name].release for name in STRENGTHS), parts["step"].input],
        handlers.redraw,
        trigger_mode="always_last",
        **again,
    )
    parts["stop"].click(handlers.stop, None, None, queue=False, **QUIET)
    return [draw, redraw, picked.then(handlers.redraw, **again)]


def _connect_canvas(parts: Parts) -> None:
    """Show the chosen picture of both rows on the canvas, and the new one after a drawing."""
    index, rows = gr.State(0), [parts["base_row"], parts["concept_row"]]
    shown, outputs = [*rows, index], parts["canvas"]
    for row in rows:
        row.select(chosen, None, index, **QUIET).then(canvas, shown, outputs, **QUIET)
    drawn = [row.change for row in rows]
    gr.on(drawn, canvas, shown, outputs, trigger_mode="always_last", **QUIET)


def _connect_reuse(handlers: PlayHandlers, album: AlbumParts, parts: Parts) -> None:
    names = ("concepts", *_PLACED, "prompt", "negative_prompt", "seed", "steps", "guidance")
    outputs = [parts[name] for name in names]
    album.reuse.click(handlers.reuse, album.chosen, outputs, **QUIET)
    album.file.upload(handlers.reuse_file, album.file, outputs, **QUIET)
