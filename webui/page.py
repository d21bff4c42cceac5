"""State and HTML that the tabs of the page share."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from sqlite3 import Error as DatabaseError
from typing import Any

import gradio as gr

from loldu.errors import LoLDUError

CONCEPTS, PROGRESS, PLAY, LIBRARY, SCORE = "concepts", "progress", "play", "library", "score"
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
"""Options of an event that stays out of the API and shows no progress bar."""
ANNOUNCED = "element.setAttribute('role', 'status')"
"""JavaScript for `js_on_load`: screen readers announce each change of the element."""


@dataclass(frozen=True)
class Page:
    """The tabs, and the choices that one tab makes for another.

    Attributes:
        demo: The page; its `load` event fires when somebody opens it.
        tabs: The tabs; `gr.Tabs(selected=...)` with one of the names above opens a tab.
        job: Id of the job that Progress shows.
        concept: Id of the library's concept that Play and Score use.
    """

    demo: gr.Blocks
    tabs: gr.Tabs
    job: gr.State
    concept: gr.State


@contextmanager
def errors_on_page() -> Iterator[None]:
    """Show errors as messages on the page; messages render HTML, so their text is escaped."""
    try:
        yield
    except LoLDUError as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error
    except DatabaseError as error:
        raise gr.Error(f"The studio's database cannot be used ({escape(str(error))}).") from error


def term_list(terms: Mapping[str, str]) -> str:
    """Return terms and their values as an HTML list, without those that have no value."""
    pairs = (
        f"<div><dt>{term}</dt><dd>{escape(value)}</dd></div>"
        for term, value in terms.items()
        if value
    )
    return f'<dl class="facts">{"".join(pairs)}</dl>'


def score_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return an HTML table whose rows begin with their names."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heading)
    body = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in cells)
        + "</tr>"
        for name, *cells in rows
    )
    return f'<table class="scores"><tr>{head}</tr>{body}</table>'
