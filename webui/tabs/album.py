"""The album below Play: drawn pictures and their settings."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from gradio.events import Dependency

from webui.backend import owner
from webui.drawing.album import Album
from webui.drawing.settings import parameters, read_png
from webui.page import QUIET, Page, errors_on_page
from webui.served import in_cache

_PAGE = 24
_HINT = "<p>Choose a picture to see its settings; its PNG file contains them too.</p>"


@dataclass(frozen=True)
class AlbumParts:
    """Components of the album whose events Play handles.

    Attributes:
        chosen: Id of the chosen picture.
        reuse: Button that reuses the chosen picture's settings.
        file: Button that reuses the settings in an uploaded PNG.
    """

    chosen: gr.State
    reuse: gr.Button
    file: gr.UploadButton


def create_album(
    album: Album, page: Page, tab: gr.Tab, drawings: Sequence[Dependency]
) -> AlbumParts:
    """Lay out the album and connect its events; it is refreshed after every drawing."""
    ids, chosen, count = gr.State([]), gr.State(), gr.State(_PAGE)
    with gr.Accordion("Your pictures", open=True):
        gallery = gr.Gallery(
            label="Newest first",
            format="png",
            columns=8,
            height="auto",
            elem_classes="pictures",
            buttons=["download", "fullscreen"],
            interactive=False,
        )
        more = gr.Button("Show older", size="sm", visible=False)
        details = gr.HTML(_HINT)
        with gr.Row():
            reuse = gr.Button("Reuse settings", min_width=120, interactive=False)
            delete = gr.Button("Delete picture", min_width=120, interactive=False)
            file = gr.UploadButton(
                "Reuse settings of a PNG file", file_types=[".png"], min_width=120
            )
    handlers = AlbumHandlers(album)
    shown = [gallery, ids, more, chosen, details, reuse, delete]
    for trigger in (page.demo.load, tab.select, *(drawing.then for drawing in drawings)):
        trigger(handlers.show, [count, chosen], shown, **QUIET)
    more.click(lambda count: count + _PAGE, count, count, **QUIET).then(
        handlers.show, [count, chosen], shown, **QUIET
    )
    gallery.select(handlers.choose, ids, [chosen, details, reuse, delete], **QUIET)
    delete.click(handlers.delete, [chosen, count], shown, **QUIET)
    return AlbumParts(chosen, reuse, file)


class AlbumHandlers:
    """Event handlers of the album; people see only their own pictures."""

    def __init__(self, album: Album) -> None:
        """Show the pictures of `album`."""
        self._album = album

    def show(self, count: int, chosen: str | None, request: gr.Request) -> list[Any]:
        """Show the newest pictures; the chosen one stays chosen."""
        kept = self._album.list(owner(request))
        contents: dict[str, bytes] = {}
        for picture in kept[:count]:
            with suppress(FileNotFoundError):  # deleted in another window at this moment
                contents[picture.id] = picture.path.read_bytes()
        ids = list(contents)
        place = ids.index(chosen) if chosen in contents else None
        is_there = place is not None
        button = gr.update(interactive=is_there)
        return [
            gr.update(
                value=[in_cache(content, f"{name}.png") for name, content in contents.items()],
                selected_index=place,
            ),
            ids,
            gr.update(visible=len(kept) > count),
            chosen if is_there else None,
            gr.skip() if is_there else _HINT,
            *(button, button),
        ]

    def choose(self, ids: list[str], request: gr.Request, event: gr.SelectData) -> list[Any]:
        """Show the settings of a picture."""
        with errors_on_page():
            kept = self._album.get(ids[event.index], owner(request))
            text = parameters(read_png(kept.path))
        button = gr.update(interactive=True)
        return [kept.id, f'<pre class="parameters">{escape(text)}</pre>', button, button]

    def delete(self, picture_id: str | None, count: int, request: gr.Request) -> list[Any]:
        """Delete a picture and show the others."""
        with errors_on_page():
            self._album.delete(picture_id, owner(request))
        return self.show(count, None, request)
