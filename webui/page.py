"""What the tabs of the page share in the browser."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from sqlite3 import Error as DatabaseError

import gradio as gr

from loldu import ConceptError
from loldu.errors import LoLDUError

CONCEPTS, PROGRESS, PLAY, LIBRARY, SCORE = "concepts", "progress", "play", "library", "score"


@dataclass(frozen=True)
class Page:
    """The tabs, and what was chosen in one of them for another.

    Attributes:
        demo: Its `load` is when somebody opens the page.
        tabs: `gr.Tabs(selected=...)` with one of the names above opens a tab.
        job: Id of the job that Progress shows.
        concept: Id of the concept in the library that Play and Score are to use.
    """

    demo: gr.Blocks
    tabs: gr.Tabs
    job: gr.State
    concept: gr.State


@contextmanager
def told() -> Iterator[None]:
    """Tell a person's mistake on the page, which would render HTML."""
    try:
        yield
    except (LoLDUError, ConceptError) as error:
        raise gr.Error(escape(str(error)), print_exception=False) from error
    except DatabaseError as error:
        raise gr.Error(f"The studio's database cannot be used ({escape(str(error))}).") from error
