"""Play: one model without and with a concept, from the same noise."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from trainer.errors import TrainerError
from webui.backend import Backend
from webui.drawing import Facts, Request, Studio
from webui.page import Page, told


@dataclass(frozen=True)
class Controls:
    """The left side, in the order of the page."""

    concept: gr.Dropdown
    file: gr.UploadButton
    strength: gr.Slider
    prompt: gr.Textbox
    count: gr.Slider
    seed: gr.Number
    steps: gr.Number
    guidance: gr.Number
    base: gr.Textbox
    draw: gr.Button


def create_play(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab, and connect it."""
    with gr.Row():
        with gr.Column(scale=1, min_width=320):
            controls = _controls(backend.studio, backend.base)
        with gr.Column(scale=2, min_width=320):
            facts = gr.HTML()
            galleries = [
                gr.Gallery(
                    label=label,
                    format="png",
                    columns=4,
                    rows=1,
                    height="auto",
                    elem_classes="pictures",
                )
                for label in ("Base", "With the concept")
            ]
    _connect(page, Handlers(backend.studio), controls, facts, galleries)


def _controls(studio: Studio, base: str) -> Controls:
    concept = gr.Dropdown(list(studio.concepts()), value=None, label="Concept")
    file = gr.UploadButton("Open a concept file", file_types=[".safetensors"], size="sm")
    strength = gr.Slider(
        0, 1.5, 1, step=0.05, label="Strength", info="0 is the base, 1 is as trained"
    )
    prompt = gr.Textbox(label="Prompt", lines=2)
    count = gr.Slider(1, 8, 4, step=1, precision=0, label="Pictures")
    with gr.Row():
        seed = gr.Number(0, label="First seed", precision=0, minimum=0, maximum=2**32, min_width=80)
        steps = gr.Number(20, label="Steps", precision=0, minimum=1, maximum=200, min_width=80)
        guidance = gr.Number(3, label="Guidance", step=0.5, minimum=1, maximum=30, min_width=80)
    model = gr.Textbox(
        base,
        label="Base model",
        info="A diffusers folder, a hub id or a .safetensors file",
        max_lines=1,
    )
    draw = gr.Button("Draw", variant="primary")
    return Controls(concept, file, strength, prompt, count, seed, steps, guidance, model, draw)


def _connect(
    page: Page,
    handlers: "Handlers",
    c: Controls,
    facts: gr.HTML,
    galleries: list[gr.Gallery],
) -> None:
    suggested = gr.State("")
    page.demo.load(handlers.look, None, c.concept, api_visibility="private")
    c.file.upload(
        handlers.open, c.file, c.concept, api_visibility="private", show_progress="hidden"
    )
    c.concept.change(
        handlers.choose,
        [c.concept, c.prompt, suggested],
        [facts, c.prompt, suggested, c.steps, c.guidance],
        api_visibility="private",
        show_progress="hidden",
    )
    gr.on(
        [c.draw.click, c.prompt.submit],
        handlers.draw,
        [c.base, c.concept, c.strength, c.prompt, c.seed, c.count, c.steps, c.guidance],
        galleries,
        api_name="draw",
    )


class Handlers:
    """What the page does with what a person does; their mistakes become one sentence on it."""

    def __init__(self, studio: Studio) -> None:
        """Answer for a studio."""
        self._studio = studio

    def look(self) -> dict[str, Any]:
        """Offer the concepts there are now, the newest chosen."""
        names = list(self._studio.concepts())
        return gr.update(choices=names, value=names[0] if names else None)

    def open(self, path: str) -> dict[str, Any]:
        """Offer and choose an uploaded file."""
        with told():
            name = self._studio.open(Path(path))
        return gr.update(choices=list(self._studio.concepts()), value=name)

    def choose(self, name: str | None, prompt: str, suggested: str) -> Iterator[tuple[Any, ...]]:
        """Show a concept's facts and draw as its run did; a prompt of the person's own stays."""
        same = gr.skip()
        yield "", same, same, same, same
        if not name:
            return
        with told():
            facts = self._studio.facts(name)
        own = facts.prompt or ""
        yield (
            describe(facts),
            own if prompt in ("", suggested) else same,
            own,
            facts.num_inference_steps or same,
            facts.guidance_scale or same,
        )

    def draw(
        self,
        base: str,
        concept: str | None,
        strength: float | int,
        prompt: str,
        seed: int | None,
        count: int,
        steps: int | None,
        guidance: float | int | None,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio looks for it here
    ) -> Iterator[tuple[list[Image.Image], list[Image.Image]]]:
        """Draw without the concept, show that, and draw with it."""
        with told():
            if seed is None or steps is None or guidance is None:
                raise TrainerError("Seed, steps and guidance each need a number.")
            request = Request(prompt, seed, count, steps, float(guidance))
            self._studio.facts(concept)  # a wrong file is told before anything is drawn
            without = self._studio.draw_base(base, request, _bar(progress, "Base"), concept)
            yield without, []
            bar = _bar(progress, "With the concept")
            yield without, self._studio.draw_concept(base, concept, strength, request, bar)


def describe(facts: Facts) -> str:
    """Return the facts of a concept file as HTML; what the file says is shown as text."""
    terms = {
        "Prompt": facts.prompt or "not told",
        "Made for": facts.base or "not told",
        "Layers": f"{facts.layers:,}",
        "Numbers": f"{facts.numbers:,}",
        "File": f"{facts.bytes:,} bytes",
    }
    pairs = "".join(
        f"<div><dt>{term}</dt><dd>{escape(told)}</dd></div>" for term, told in terms.items()
    )
    return f'<dl class="facts">{pairs}</dl>'


def _bar(progress: gr.Progress, name: str) -> Callable[[int, int], None]:
    def report(done: int, total: int) -> None:
        progress((done, total), desc=name)

    return report
