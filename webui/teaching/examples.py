"""The example concepts: a folder of pictures and captions each."""

import base64
import io
import re
from html import escape
from pathlib import Path

from loldu.pictures.captions import read_text
from loldu.pictures.folder import is_picture
from loldu.pictures.open import load_image

_CARD_PX = 160


def examples(folder: Path) -> list[str]:
    """Return the names of the example concepts in a folder, which may be missing."""
    if not folder.is_dir():
        return []
    return sorted(each.name for each in folder.iterdir() if each.is_dir())


def class_in_captions(folder: Path) -> str | None:
    """Return the class in an example's captions, which call its concept sks; None without one."""
    for caption in sorted(folder.glob("*.txt")):
        if found := re.search(r"\bsks (\w+)", read_text(caption)):
            return found[1]
    return None


def cards(folder: Path) -> str:
    """Return the example concepts as HTML: a card with the first picture of each."""
    shown = ""
    for name in examples(folder):
        picture = next((p for p in sorted((folder / name).iterdir()) if is_picture(p)), None)
        if picture is None:
            continue
        image, content = load_image(picture), io.BytesIO()
        image.thumbnail((_CARD_PX, _CARD_PX))
        image.save(content, "WEBP", quality=90)
        data = base64.b64encode(content.getvalue()).decode()
        shown += (
            f'<button type="button" data-name="{escape(name)}">'
            f'<img alt="" src="data:image/webp;base64,{data}">'
            f"{escape(name.replace('_', ' '))}</button>"
        )
    return f'<div class="cards-of-examples">{shown}</div>' if shown else ""
