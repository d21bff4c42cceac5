"""The page: a header and the tabs."""

import os
from html import escape
from typing import Any

import gradio as gr

from loldu.errors import LoLDUError
from webui.backend import Backend, owner
from webui.engine.job import ACTIVE, ENDED, Kind
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

_TITLE_S = 3
_TITLE = """const title = () => {
  document.title = element.querySelector('[data-title]')?.dataset.title ?? 'LoLDU';
};
watch('value', title);"""
"""JavaScript that gives the window its title."""
_SMALL_PX = 256
"""A base whose pictures are smaller cannot draw photographs."""
_CACHE_S = (3600, 24 * 3600)
"""How often gradio cleans its cache, and the age of files that it deletes."""


def create_demo(backend: Backend) -> gr.Blocks:
    """Lay out the page."""
    with gr.Blocks(title="LoLDU", analytics_enabled=False, delete_cache=_CACHE_S) as demo:
        gr.HTML(header(backend))
        job = gr.HTML(js_on_load=_TITLE)
        tabs = gr.Tabs(selected=CONCEPTS)
        page = Page(demo, tabs, job=gr.State(), concept=gr.State())
        with tabs:
            for tab_id, label, create in _TABS:
                with gr.Tab(label, id=tab_id) as tab:
                    create(backend, page, tab)

        def doing(request: gr.Request) -> str:
            return _doing(backend, request)

        def begin(address: str, request: gr.Request) -> tuple[Any, Any]:
            return _begin(backend, address, request)

        for trigger in (demo.load, gr.Timer(_TITLE_S).tick):
            trigger(doing, None, job, queue=False, api_visibility="private", show_progress="hidden")
        demo.load(
            begin,
            gr.State(""),
            [tabs, page.job],
            js="() => location.hash",
            api_visibility="private",
            show_progress="hidden",
        )
    return demo


def _begin(backend: Backend, address: str, request: gr.Request) -> tuple[Any, Any]:
    """Show the job of an address; without an address, open Progress if a job waits or runs."""
    _, _, job_id = address.partition("/")
    own = {job.id: job for job in backend.jobs.list(owner(request))}
    busy = any(job.status not in ENDED for job in own.values())
    tab = gr.Tabs(selected=PROGRESS) if busy and not address else gr.skip()
    return tab, job_id if job_id in own else gr.skip()


def _doing(backend: Backend, request: gr.Request) -> str:
    """Return the person's running training as a link, which also gives the window its title."""
    own = backend.jobs.list(owner(request), Kind.TRAIN)
    job = next((job for job in own if job.status in ACTIVE), None)
    if job is None:
        return ""
    try:
        progress = backend.jobs.progress(job.id)
    except LoLDUError:  # its folder is gone
        return ""
    name, steps = escape(job.name), f"{progress.step} of {progress.steps}"
    done = f"{round(100 * progress.step / max(progress.steps, 1))} %"
    return (
        f'<a class="doing" href="#progress/{job.id}" data-title="{done} · {name} · LoLDU">'
        f"Teaching {name}: {steps}</a>"
    )


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
