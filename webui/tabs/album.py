"""The album below Play: what was drawn, and by what."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.events import Dependency
from gradio.processing_utils import hash_bytes
from gradio.utils import get_upload_folder

from loldu.files import write_atomically
from webui.backend import owner
from webui.drawing.album import Album
from webui.drawing.settings import parameters, read_png
from webui.page import Page, told

_PAGE = 24
_HINT = "<p>Choose a picture to see how it was drawn; its PNG tells that too.</p>"


@dataclass(frozen=True)
class AlbumParts:
    """What the rest of Play listens to.

    Attributes:
        chosen: Id of the picture that is chosen.
        reuse: To draw as that was.
        file: To draw as an uploaded PNG was.
    """

    chosen: gr.State
    reuse: gr.Button
    file: gr.UploadButton


def create_album(
    album: Album, page: Page, tab: gr.Tab, drawings: Sequence[Dependency]
) -> AlbumParts:
    """Lay out the album, and connect it; a drawing adds to it."""
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
    quiet: Any = {"api_visibility": "private", "show_progress": "hidden"}
    shown = [gallery, ids, more, chosen, details, reuse, delete]
    for trigger in (page.demo.load, tab.select, *(drawing.then for drawing in drawings)):
        trigger(handlers.show, [count, chosen], shown, **quiet)
    more.click(lambda count: count + _PAGE, count, count, **quiet).then(
        handlers.show, [count, chosen], shown, **quiet
    )
    gallery.select(handlers.choose, ids, [chosen, details, reuse, delete], **quiet)
    delete.click(handlers.delete, [chosen, count], shown, **quiet)
    return AlbumParts(chosen, reuse, file)


class AlbumHandlers:
    """Answers everybody who looks at their pictures."""

    def __init__(self, album: Album) -> None:
        """Show what an album has."""
        self._album = album

    def show(self, count: int, chosen: str | None, request: gr.Request) -> list[Any]:
        """Show the newest pictures; one that is chosen stays so."""
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
        """Show how a picture was drawn."""
        with told():
            kept = self._album.get(ids[event.index], owner(request))
            text = parameters(read_png(kept.path))
        button = gr.update(interactive=True)
        return [kept.id, f'<pre class="parameters">{escape(text)}</pre>', button, button]

    def delete(self, picture_id: str | None, count: int, request: gr.Request) -> list[Any]:
        """Delete a picture, and show the others."""
        with told():
            self._album.delete(picture_id, owner(request))
        return self.show(count, None, request)


def in_cache(content: bytes, name: str) -> str:
    """Where gradio finds a file to be shown and downloaded, as it is; nobody can guess it."""
    path = Path(get_upload_folder()) / hash_bytes(content) / name
    if not path.exists():  # and may be on its way to a browser
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return str(path)
