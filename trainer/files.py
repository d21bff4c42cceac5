"""Writing a file whole or not at all."""

import io
import os
from pathlib import Path

from PIL import Image


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


def save_png(image: Image.Image, path: Path) -> None:
    """Write a picture atomically, as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())
