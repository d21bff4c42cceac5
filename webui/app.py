"""The page: a header and the tabs."""

import os
from html import escape
from typing import Any

import gradio as gr

from webui.backend import Backend, owner
from webui.engine.job import ENDED
from webui.page import CONCEPTS, LIBRARY, PLAY, PROGRESS, SCORE, Page
from webui.style import LOGO
from webui.tabs.concepts import create_concepts
from webui.tabs.library import create_library
from webui.tabs.play import create_play
from webui.tabs.progress import create_progress
from webui.tabs.score import create_score

_TABS = (
    (CONCEPTS, "Teach", create_concepts),
    (PROGRESS, "Progress", create_progress),
    (PLAY, "Play", create_play),
    (LIBRARY, "Library", create_library),
    (SCORE, "Score", create_score),
)

_SMALL_PX = 256
"""A base whose pictures are smaller cannot draw photographs."""
_CACHE_S = (3600, 24 * 3600)
"""How often gradio cleans its cache, and the age of files that it deletes."""


def create_demo(backend: Backend) -> gr.Blocks:
    """Lay out the page."""
    with gr.Blocks(title="LoLDU", analytics_enabled=False, delete_cache=_CACHE_S) as demo:
        gr.HTML(header(backend))
        tabs = gr.Tabs(selected=CONCEPTS)
        page = Page(demo, tabs, job=gr.State(), concept=gr.State())
        with tabs:
            for tab_id, label, create in _TABS:
                with gr.Tab(label, id=tab_id) as tab:
                    create(backend, page, tab)

        def begin(request: gr.Request) -> Any:  # noqa: ANN401
            """Open Progress if a job is queued or running."""
            jobs = backend.jobs.list(owner(request))
            busy = any(job.status not in ENDED for job in jobs)
            return gr.Tabs(selected=PROGRESS) if busy else gr.skip()

        demo.load(begin, None, tabs, api_visibility="private", show_progress="hidden")
    return demo


def header(backend: Backend) -> str:
    """Return the header as HTML: what the page is for, its base and its device."""
    place = "GPU" if backend.studio.device == "cuda" else f"CPU, {os.cpu_count()} cores"
    return (
        f'<header class="header">{LOGO.read_text(encoding="utf-8")}<div><h1>LoLDU</h1>'
        "<p>Teach a model something new from 3 to 5 pictures.</p></div>"
        f'<p class="place">Base <strong>{escape(backend.base)}</strong> · {place}</p></header>'
        f"{_notice(backend.side_px)}"
    )


def _notice(side_px: int | None) -> str:
    """Return a sentence about a base whose pictures are too small for photographs, or ""."""
    if side_px is None or side_px >= _SMALL_PX:
        return ""
    return (
        f'<p class="notice">This base is a toy world of {side_px} pixels. For photographs, start '
        "the studio with <code>--base stable-diffusion-v1-5/stable-diffusion-v1-5</code>.</p>"
    )
