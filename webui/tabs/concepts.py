"""The Concepts tab: pictures, crops, a name and the options of a training."""

from collections.abc import Mapping, Sequence
from typing import Any

import gradio as gr

from loldu.presets import Preset
from webui.backend import Backend
from webui.page import QUIET, Page
from webui.tabs.concepts_handlers import ConceptsHandlers, Form, Pictures, examples
from webui.teaching.crops import MAX_ZOOM
from webui.teaching.recipes import presets_for
from webui.teaching.uploads import FILE_TYPES

_PREVIEWS = "a {token} {class} in the snow"


def create_concepts(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    known = presets_for(backend.base)
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            pictures = _pictures(examples(backend.examples))
        with gr.Column(scale=1, min_width=320):
            form = _form(known)
    _connect(page, tab, ConceptsHandlers(backend, known, pictures, form), pictures, form)


def _pictures(examples: Sequence[str]) -> Pictures:
    chosen, index = gr.State(()), gr.State(None)
    files = gr.File(
        label="3 to 5 pictures of one thing",
        file_count="multiple",
        file_types=FILE_TYPES,
        height=150,
        elem_id="files",
    )
    dropdown = gr.Dropdown(
        list(examples),
        value=None,
        label="Or try it with example pictures",
        visible=bool(examples),
    )
    crops = gr.Gallery(
        label="Crops for training; choose one to change it",
        columns=5,
        height="auto",
        allow_preview=False,
        interactive=False,
        format="png",
        elem_classes="pictures",
        buttons=[],
        visible=False,
    )
    with gr.Column(visible=False) as cropping:
        whole = gr.Image(label="Crop", interactive=False, format="png", height=320, buttons=[])
        with gr.Row():
            zoom = gr.Slider(1, MAX_ZOOM, 1, step=0.05, label="Zoom", min_width=100)
            x = gr.Slider(0, 1, 0.5, step=0.01, label="Left to right", min_width=100)
            y = gr.Slider(0, 1, 0.5, step=0.01, label="Top to bottom", min_width=100)
        remove = gr.Button("Remove this picture", size="sm")
    return Pictures(chosen, index, files, dropdown, crops, cropping, whole, zoom, x, y, remove)


def _form(known: Mapping[str, Preset]) -> Form:
    first = next(iter(known.values()))
    name = gr.Textbox(label="Name", placeholder="Milo", info="Your name for it.")
    with gr.Row():
        class_name = gr.Textbox(
            label="Class", placeholder="dog", info="What kind of thing it is.", min_width=140
        )
        token = gr.Textbox(
            label="Rare word", info="Stands for it in prompts. Use a made-up word.", min_width=140
        )
    recipe = gr.Radio([(each.replace("_", " "), each) for each in known], label="Preset")
    about = gr.Markdown()
    with gr.Accordion("Advanced", open=False):
        advanced = _advanced()
    doctor = gr.HTML()
    estimate = gr.Markdown()
    train = gr.Button("Train", variant="primary", elem_id="train")
    recipe.value = first.name
    return Form(
        name,
        class_name,
        token,
        recipe,
        about,
        *advanced,
        doctor=doctor,
        estimate=estimate,
        train=train,
    )


def _advanced() -> tuple[Any, ...]:
    with gr.Row():
        steps = gr.Number(label="Steps", precision=0, minimum=1, maximum=20_000, min_width=100)
        rate = gr.Number(label="Learning rate", minimum=0, maximum=10, min_width=100)
        rank = gr.Textbox(label="Rank", info="A number, or full.", max_lines=1, min_width=100)
        side = gr.Number(
            label="Resolution", precision=0, minimum=64, maximum=1024, step=64, min_width=100
        )
    prior = gr.Checkbox(label="Preserve the class", info="Up to twice the time per step.")
    text = gr.Checkbox(label="Train the text encoder too", info="Learns the word faster.")
    flip = gr.Checkbox(
        label="Mirror pictures at random",
        info="Not for text, nor for things with a left and a right.",
    )
    scored = gr.Checkbox(
        True, label="Score while training", info="DINO and CLIP curves; loads two more models."
    )
    previews = gr.Textbox(
        _PREVIEWS,
        lines=2,
        label="Prompts to draw while training",
        info="One per line, in addition to a plain photo; {token} and {class} are filled in.",
    )
    seed = gr.Number(42, label="Seed", precision=0, minimum=0, maximum=2**32 - 1)
    return steps, rate, rank, side, prior, text, flip, scored, previews, seed


def _connect(page: Page, tab: gr.Tab, h: "ConceptsHandlers", p: Pictures, f: Form) -> None:
    crop = [p.zoom, p.x, p.y]
    filled = {p.chosen, *(c for c in vars(f).values() if c not in (f.about, f.doctor, f.train))}
    filled -= {f.estimate}
    page.demo.load(h.begin, None, [f.token], **QUIET)
    gr.on([page.demo.load, f.recipe.change], h.choose, f.recipe, [f.about, *f.of_recipe()], **QUIET)
    p.files.upload(
        h.add,
        [p.files, p.chosen, f.resolution],
        [p.files, p.chosen, p.crops],
        api_visibility="private",
    )
    p.examples.input(
        h.take, [p.examples, f.resolution], [p.chosen, p.crops, f.name, f.class_name], **QUIET
    )
    p.crops.select(h.select, p.chosen, [p.index, p.cropping, p.whole, *crop], **QUIET)
    gr.on(
        [slider.input for slider in (p.zoom, p.x, p.y)],
        h.crop,
        [p.chosen, f.resolution, p.index, *crop],
        [p.chosen, p.whole, p.crops],
        trigger_mode="always_last",
        **QUIET,
    )
    p.remove.click(
        h.remove,
        [p.chosen, f.resolution, p.index],
        [p.chosen, p.index, p.cropping, p.crops],
        **QUIET,
    )
    changes = [p.chosen.change, f.class_name.blur, f.token.blur, tab.select]
    changes += [component.change for component in f.of_recipe()]
    gr.on(changes, h.judge, filled, [f.doctor, f.estimate], trigger_mode="always_last", **QUIET)
    f.train.click(h.train, filled, [page.job, page.tabs, f.token], api_visibility="private")
