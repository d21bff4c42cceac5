"""Library."""

import gradio as gr

from webui.backend import Backend
from webui.page import Page


def create_library(backend: Backend, page: Page, tab: gr.Tab) -> None:
    """Lay out the tab, and connect it."""
