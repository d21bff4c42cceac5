"""The canvas of Play as HTML: a picture of the base and of the concept, with a divider to drag."""

from collections.abc import Sequence
from html import escape

import gradio as gr

from webui.library.entry import Entry
from webui.served import address, picture_address

_FACE_PX = 64
_EMPTY = (
    '<div class="canvas empty"><p>Press Draw. You see the base and the concept from the same '
    "noise, with a divider to drag.</p></div>"
)

Row = Sequence[tuple[str, str | None]] | None
"""Paths in gradio's cache, and captions, of a gallery."""


def canvas(base: Row, concept: Row, index: int) -> str:
    """Return the pictures at a place of both rows over each other; a row may lack it."""
    index = min(index, max(len(base or ()), 1) - 1)
    paths = [row[index][0] for row in (base, concept) if row and index < len(row)]
    if not paths:
        return _EMPTY
    images = "".join(f'<img alt="" src="{escape(address(path))}">' for path in paths)
    if len(paths) == 1:
        return f'<div class="canvas">{images}<b>Base</b></div>'
    return (
        f'<div class="canvas wipe">{images}<i></i><b>Base</b><b class="with">With the concept</b>'
        '<input type="range" min="0" max="100" value="50" '
        'aria-label="Divider between the base and the concept"></div>'
    )


def chosen(event: gr.SelectData) -> int:
    """Return the place in its row of the picture that a person chose."""
    return event.index


def faces(entries: Sequence[Entry]) -> str:
    """Return a style sheet that puts a picture on the chip of each concept, in the same order."""
    rules = ""
    for number, entry in enumerate(entries, 1):
        pictures = (*entry.pictures, *entry.samples)
        if found := next(filter(None, (picture_address(path, _FACE_PX) for path in pictures)), ""):
            rules += f'.chips label:nth-of-type({number})::before {{ --face: url("{found}"); }}\n'
    return f"<style>{rules}</style>"
