"""Write files atomically, and read TOML."""

import io
import os
import tomllib
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loldu.errors import LoLDUError


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a temporary file next to the target, then rename it.

    A reader sees either the old file or the whole new one. Missing parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
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
    """Write a PNG atomically; `parameters` is stored inside it and says how it was drawn."""
    info = PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    write_atomically(path, buffer.getvalue())


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file that a person wrote.

    Args:
        path: The file.
        what: What messages call it, such as "The preset".

    Raises:
        LoLDUError: If it does not exist or is not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise LoLDUError(f"{what} {path} cannot be read as TOML: {reason}.") from error
