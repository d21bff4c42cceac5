"""Pictures that a browser may load: copies in gradio's cache, at paths that nobody can guess."""

import io
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from gradio.processing_utils import hash_bytes
from gradio.utils import get_upload_folder
from PIL import Image

from loldu.errors import LoLDUError
from loldu.files import write_atomically
from loldu.pictures.open import load_image


def in_cache(content: bytes, name: str) -> str:
    """Write a file to gradio's cache for display and download; return its path."""
    path = Path(get_upload_folder()) / hash_bytes(content) / name
    if not path.exists():  # a browser may be loading it
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content)
    return str(path)


def address(path: str) -> str:
    """Return the address of a file in gradio's cache, for HTML; the page may have any root."""
    return f"gradio_api/file={quote(path)}"


def picture_address(path: Path, side_px: int) -> str:
    """Return the address of a copy of a picture of at most `side_px`, or "" if it is unreadable."""
    try:
        written = path.stat().st_mtime_ns
    except OSError:
        return ""
    copy = _copy(path, written, side_px)
    if copy and not Path(copy).exists():  # gradio has cleaned its cache
        _copy.cache_clear()
        copy = _copy(path, written, side_px)
    return address(copy) if copy else ""


@lru_cache(maxsize=4096)
def _copy(path: Path, _: int, side_px: int) -> str:
    """Return the path of the copy; a picture that is written again has another time."""
    content = io.BytesIO()
    try:
        image = load_image(path)
    except LoLDUError:
        return ""
    image.thumbnail((side_px, side_px), Image.Resampling.LANCZOS)
    image.save(content, "WEBP", quality=92)
    return in_cache(content.getvalue(), "picture.webp")
