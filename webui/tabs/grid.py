"""The grid of Play: one concept at several strengths and steps of its training."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.events import Dependency

from webui.backend import Backend, owner
from webui.drawing.asked import ask_grid
from webui.drawing.grid import STRENGTHS, Grid, describe_grid, steps_of
from webui.page import ANNOUNCED, QUIET, errors_on_page
from webui.style import content_of
from webui.tabs.play_handlers import DRAWING, PlayHandlers, watch


def create_grid(parts: dict[str, Any]) -> None:
    """Lay out the grid."""
    with gr.Accordion("Grid of strengths and steps", open=False, elem_classes="of-grid"):
        with gr.Row(elem_classes="inserts"):
            parts["grid_about"] = gr.HTML(describe_grid(None, {}), js_on_load=ANNOUNCED)
            parts["draw_grid"] = gr.Button("Draw the grid", scale=0, min_width=130)
        parts["grid"] = gr.HTML(js_on_load=content_of("grid.js"))


def connect_grid(
    backend: Backend, play: PlayHandlers, parts: Mapping[str, Any], asked: dict[str, Any]
) -> tuple[Dependency, Dependency]:
    """Connect the events of the grid; return the one that sets the controls, and the drawing."""
    handlers = GridHandlers(backend, play)
    drawing = parts["draw_grid"].click(
        handlers.draw,
        inputs_kwargs=asked,
        outputs=parts["grid"],
        show_progress_on=[parts["grid_about"]],
        api_name="draw_grid",  # "draw" is Play's
        api_visibility="private",
        **DRAWING,
    )
    controls = [parts["strength_1"], parts["step"]]
    picked = parts["grid"].select(handlers.pick, None, controls, **QUIET)
    return picked, drawing


class GridHandlers:
    """Event handlers of the grid."""

    def __init__(self, backend: Backend, play: PlayHandlers) -> None:
        """Draw with the model of `backend` what the controls of Play ask for."""
        self._backend, self._play = backend, play

    def draw(
        self,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  gradio looks for it here
        **asked: Any,  # noqa: ANN401
    ) -> Iterator[str]:
        """Draw the first concept of the controls row by row, and keep the whole grid."""
        with errors_on_page(), self._play.stoppable(request) as stop:
            library = self._backend.library
            task, (use, *others) = ask_grid(library, owner(request), asked)
            rows, count = steps_of(use.entry, library.steps(use.entry)), len(STRENGTHS)
            task = replace(task, prompts=task.prompts * count, seeds=task.seeds * count)
            grid = Grid([*rows])
            for place, entry in enumerate(rows.values()):
                yield grid.html()
                uses = [[replace(use, entry=entry, strength=each), *others] for each in STRENGTHS]
                seen = watch(progress, f"Row {place + 1} of {len(rows)}", stop, place, len(rows))
                row = self._backend.studio.draw_concepts(task, uses, seen)
                grid = replace(grid, rows=(*grid.rows, tuple(row)))
            content = grid.png()
            self._backend.album.keep(owner(request), [(grid.settings, content)])
            yield grid.html(content)

    def pick(self, event: gr.EventData) -> tuple[Any, Any]:
        """Set the controls to the strength and the step of the clicked picture."""
        strength, step = event.strength, event.step
        if strength not in STRENGTHS or not (step is None or type(step) is int):
            return gr.skip(), gr.skip()
        return strength, gr.skip() if step is None else step
