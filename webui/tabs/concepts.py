"""The Teach tab: pictures, the words for them, and the options of a training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gradio as gr

from loldu.presets import Preset
from webui.backend import Backend
from webui.page import QUIET, Page
from webui.style import content_of
from webui.tabs.concepts_handlers import ConceptsHandlers, Form, Pictures
from webui.teaching.examples import cards
from webui.teaching.recipes import presets_for
from webui.teaching.uploads import FILE_TYPES

_PREVIEWS = "a {token} {class} in the snow"
_CAPTION = "Of this picture alone, with its rare word. Empty: the same as the others."
_PICK = """element.addEventListener('click', (event) => {
  const card = event.target.closest('[data-name]');
  if (card) trigger('select', {name: card.dataset.name});
});"""


def create_concepts(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab and connect its events."""
    known = presets_for(backend.base)
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            pictures = _pictures(backend.examples)
        with gr.Column(scale=2, min_width=320):
            form = _form(known)
    with gr.Row(elem_classes="bar"):
        form.estimate.render()
        form.train.render()
    _connect(page, tab, ConceptsHandlers(backend, known, pictures, form), pictures, form)


def step(number: int, title: str, about: str = "") -> gr.HTML:
    """Lay out a numbered heading."""
    return gr.HTML(f'<div class="step"><b>{number}</b><h2>{title}</h2><span>{about}</span></div>')


def _pictures(folder: Path) -> Pictures:
    chosen, index = gr.State(()), gr.State(None)
    step(1, "Pictures", "3 to 5 of one thing")
    crops = gr.Gallery(
        label="As it will be taught; choose one to change its crop",
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
        whole = gr.HTML(js_on_load=content_of("cropper.js"))
        caption = gr.Textbox(
            label="Caption", placeholder="a photo of a sks dog on grass", max_lines=2, info=_CAPTION
        )
        remove = gr.Button("Remove this picture", size="sm")
    doctor = gr.HTML()
    problem = gr.HTML()
    files = gr.File(
        label="Your pictures",
        file_count="multiple",
        file_types=FILE_TYPES,
        height=130,
        elem_id="files",
    )
    shown = cards(folder)
    with gr.Column(visible=bool(shown), min_width=0):
        gr.HTML('<p class="or">Or try an example. A click fills in everything.</p>')
        picked = gr.HTML(shown, js_on_load=_PICK)
    return Pictures(
        *(chosen, index, files, picked, crops, cropping, whole, caption, remove),
        doctor=doctor,
        problem=problem,
    )


def _form(known: Mapping[str, Preset]) -> Form:
    first = next(iter(known.values()))
    step(2, "Name")
    name = gr.Textbox(label="Name", placeholder="Milo", show_label=False, container=False)
    gap: dict[str, Any] = {"show_label": False, "container": False, "elem_classes": "gap"}
    with gr.Row(elem_classes="sentence"):
        gr.HTML("It is a")
        class_name = gr.Textbox(label="Class", placeholder="dog", **gap)
    with gr.Row(elem_classes="sentence"):
        gr.HTML("called")
        token = gr.Textbox(label="Rare word", **gap)
        called = gr.HTML("dog", html_template="<b>{{value}}</b>")
        gr.HTML("in prompts.")
    gr.HTML(
        '<p class="hint">The short made-up word stands for your thing. Any will do; this one is '
        "free.</p>"
    )
    words = gr.HTML()
    step(3, "Teach")
    recipe = gr.Radio(
        [(each.replace("_", " "), each) for each in known], label="Preset", visible=len(known) > 1
    )
    about = gr.Markdown(visible=len(known) > 1)
    with gr.Accordion("More options", open=False):
        of_trainer = _of_trainer()
        previews = gr.Textbox(
            _PREVIEWS,
            lines=2,
            label="Prompts to draw while training",
            info="One per line, in addition to a plain photo; {token} and {class} are filled in.",
        )
    problem = gr.HTML()
    recipe.value = first.name
    return Form(
        *(name, class_name, token, recipe, about, of_trainer, previews),
        called=called,
        words=words,
        problem=problem,
        estimate=gr.Markdown(render=False),
        train=gr.Button("Teach", variant="primary", elem_id="train", scale=0, render=False),
        tried=gr.State(False),
    )


def _of_trainer() -> dict[str, Any]:
    """Lay out options of the trainer, and return them by name: a new one is a line here."""
    with gr.Row():
        fields: dict[str, Any] = {
            "max_train_steps": gr.Number(
                label="Steps", precision=0, minimum=1, maximum=20_000, min_width=100
            ),
            "learning_rate": gr.Number(label="Learning rate", minimum=0, maximum=10, min_width=100),
            "rank": gr.Textbox(label="Rank", info="A number, or full.", max_lines=1, min_width=100),
            "resolution": gr.Number(
                label="Resolution", precision=0, minimum=64, maximum=1024, step=64, min_width=100
            ),
        }
    return fields | {
        "with_prior_preservation": gr.Checkbox(
            label="Preserve the class", info="Up to twice the time per step."
        ),
        "train_text_encoder": gr.Checkbox(
            label="Train the text encoder too", info="Learns the word faster."
        ),
        "random_flip": gr.Checkbox(
            label="Mirror pictures at random",
            info="Not for text, nor for things with a left and a right.",
        ),
        "validation_scores": gr.Checkbox(
            True, label="Score while training", info="DINO and CLIP curves; loads two more models."
        ),
        "seed": gr.Number(42, label="Seed", precision=0, minimum=0, maximum=2**32 - 1),
    }


def _connect(page: Page, tab: gr.Tab, h: "ConceptsHandlers", p: Pictures, f: Form) -> None:
    typed, of_recipe = [f.name, f.class_name, f.token], [*f.of_recipe.values()]
    filled = {p.chosen, *typed, f.recipe, *f.of_trainer.values(), f.previews, f.tried}
    problems, resolution = [p.problem, f.words, f.problem], f.of_trainer["resolution"]
    page.demo.load(h.begin, None, [p.chosen, p.crops, *typed], **QUIET)
    gr.on([page.demo.load, f.recipe.change], h.choose, f.recipe, [f.about, *of_recipe], **QUIET)
    p.files.upload(
        h.add,
        [p.files, p.chosen, resolution],
        [p.files, p.chosen, p.crops],
        trigger_mode="multiple",  # by default, gradio drops an upload while another one is taken
        api_visibility="private",
    )
    p.examples.select(
        h.take, resolution, [p.chosen, p.crops, p.cropping, f.name, f.class_name], **QUIET
    )
    p.crops.select(h.select, p.chosen, [p.index, p.cropping, p.whole, p.caption], **QUIET)
    p.whole.select(
        h.crop,
        [p.chosen, resolution, p.index],
        [p.chosen, p.crops],
        trigger_mode="always_last",
        **QUIET,
    )
    for done in (p.caption.blur, p.caption.submit):
        done(h.caption, [p.chosen, p.index, p.caption], p.chosen, **QUIET)
    p.remove.click(
        h.remove,
        [p.chosen, resolution, p.index],
        [p.chosen, p.index, p.cropping, p.crops],
        **QUIET,
    )
    f.class_name.change(None, f.class_name, f.called, js="(word) => word || 'dog'")
    changes = [p.chosen.change, f.class_name.blur, f.token.blur, tab.select]
    changes += [component.change for component in of_recipe]
    judged = [p.doctor, f.estimate]
    gr.on(changes, h.judge, filled, judged, trigger_mode="always_last", **QUIET)
    # Not always_last: gradio repeats the whole event then, and two such handlers call each other
    # for good.
    gr.on(changes, h.check, filled, problems, trigger_mode="multiple", **QUIET)
    kept = [p.chosen, *typed]
    gr.on(
        [p.chosen.change, *(each.change for each in typed)],
        h.keep,
        kept,
        None,
        trigger_mode="multiple",
        **QUIET,
    )
    answered = [page.job, page.tabs, f.token, f.tried, f.estimate, *problems]
    # The check that leaving a field has begun may answer after Teach: check again.
    f.train.click(h.train, filled, answered, **QUIET).then(h.check, filled, problems, **QUIET)
