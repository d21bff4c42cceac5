"""Writing a file whole or not at all."""

import io
import os
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write beside the target, then rename: a reader sees the old file or all of the new."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_png(image: Image.Image, path: Path, parameters: str | None = None) -> None:
    """Write a picture atomically, as PNG; `parameters` is kept inside and says how it was drawn."""
    info = PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    write_atomically(path, buffer.getvalue())
