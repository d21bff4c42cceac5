"""The page: a header, and its tabs."""

import os
from html import escape
from typing import Any

import gradio as gr

from webui.backend import Backend, owner
from webui.engine.job import ENDED
from webui.page import CONCEPTS, LIBRARY, PLAY, PROGRESS, SCORE, Page
from webui.tabs.concepts import create_concepts
from webui.tabs.library import create_library
from webui.tabs.play import create_play
from webui.tabs.progress import create_progress
from webui.tabs.score import create_score

_TABS = (
    (CONCEPTS, "Concepts", create_concepts),
    (PROGRESS, "Progress", create_progress),
    (PLAY, "Play", create_play),
    (LIBRARY, "Library", create_library),
    (SCORE, "Score", create_score),
)


_CACHE_S = (3600, 24 * 3600)
"""How often what lies in the cache is looked at, and how old it may be."""


def create_demo(backend: Backend) -> gr.Blocks:
    """Lay out the page of a server."""
    with gr.Blocks(title="LoLDU", analytics_enabled=False, delete_cache=_CACHE_S) as demo:
        gr.HTML(header(backend))
        tabs = gr.Tabs(selected=CONCEPTS)
        page = Page(demo, tabs, job=gr.State(), concept=gr.State())
        with tabs:
            for tab_id, label, create in _TABS:
                with gr.Tab(label, id=tab_id) as tab:
                    create(backend, page, tab)

        def begin(request: gr.Request) -> Any:  # noqa: ANN401
            """Open the page where something is going on."""
            going_on = [job for job in backend.jobs.list(owner(request)) if job.status not in ENDED]
            return gr.Tabs(selected=PROGRESS) if going_on else gr.skip()

        demo.load(begin, None, tabs, api_visibility="private", show_progress="hidden")
    return demo


def header(backend: Backend) -> str:
    """What the page is, and what it runs on, as HTML."""
    place = "GPU" if backend.studio.device == "cuda" else f"CPU, {os.cpu_count()} cores"
    return (
        '<header class="header"><h1>LoLDU</h1><p>Teach a model a concept from 3 to 5 pictures.</p>'
        f"<p>Base: <strong>{escape(backend.base)}</strong> · {place}</p></header>"
    )
