"""Write files and folders whole or not at all, and read TOML."""

import io
import os
import secrets
import shutil
import time
import tomllib
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loldu.errors import LoLDUError

DRAFTS = ".loldu-*.draft"
"""Pattern of the names of drafts; a killed process leaves its draft."""
_FORGOTTEN_AFTER_S = 24 * 3600


@contextmanager
def drafted(
    target: Path, drafts: Path | None = None, *, finish: Callable[[Path], object] | None = None
) -> Generator[Path]:
    """Yield a path for the draft of a file or folder, and rename the draft after the block.

    The block makes a file or a folder at that path. A reader sees either the old file or the whole
    new one. After an error, no draft is left. A folder replaces only an empty folder.
    Drafts in the same folder that a killed process left more than a day ago are deleted.

    Args:
        target: The file or folder; missing parent folders are created.
        drafts: Folder for the draft, on the same filesystem; the target's own by default.
        finish: Called with the complete draft, before it is renamed.

    Raises:
        OSError: If it cannot be written; the error names the target.
    """
    draft = draft_in(drafts or target.parent)
    with named_in_errors(target, draft):
        for folder in (target.parent, draft.parent):
            folder.mkdir(parents=True, exist_ok=True)
        for old in draft.parent.glob(DRAFTS):
            with suppress(FileNotFoundError):  # another process deleted it
                if time.time() - old.stat().st_mtime > _FORGOTTEN_AFTER_S:
                    remove(old)
        try:
            yield draft
            _flush(draft)
            if finish:
                finish(draft)
            draft.replace(target)
        except BaseException:
            remove(draft)
            raise


def draft_in(folder: Path) -> Path:
    """Return a new path for a draft in a folder."""
    return folder / DRAFTS.replace("*", secrets.token_hex(8))


def write_atomically(path: Path, content: bytes | str, drafts: Path | None = None) -> None:
    """Write a whole file, text as UTF-8; `drafted` explains how and the folder of drafts."""
    data = content.encode() if isinstance(content, str) else content
    with drafted(path, drafts) as draft:
        draft.write_bytes(data)


def remove(path: Path) -> None:
    """Delete a file, or a folder with everything in it, if it exists."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def named_in_errors(path: Path, draft: Path | None = None) -> Generator[None]:
    """Name the path in system errors of the block that name no file, or name its draft.

    A full disk is such an error: the system does not say which file it was.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        elif draft is not None and error.filename is not None:
            error.filename = str(error.filename).replace(str(draft), str(path))
        raise


def save_png(image: Image.Image, path: Path, parameters: str | None = None) -> None:
    """Write a PNG atomically; `parameters` is stored inside it and says how it was drawn."""
    write_atomically(path, png_bytes(image, parameters))


def png_bytes(image: Image.Image, parameters: str | None = None) -> bytes:
    """Return the content of a PNG file; `parameters` is stored inside it."""
    info = PngInfo()
    if parameters is not None:
        info.add_text("parameters", parameters)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def read_toml(path: Path, what: str) -> dict[str, Any]:
    """Read a TOML file that a person wrote.

    Args:
        path: The file.
        what: What messages call it, such as "The preset".

    Raises:
        LoLDUError: If it does not exist, is not TOML, or is too deep for Python.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # editors may write a BOM
        if _has_huge_number(content):
            raise ValueError("a whole number has more than the 64 bits of TOML")
    except (OSError, ValueError, RecursionError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else error
        raise LoLDUError(f"{what} {path} cannot be read as TOML: {reason}.") from error
    return content


def _has_huge_number(value: Any) -> bool:  # noqa: ANN401  any TOML
    """Tell whether a value holds a number that neither floats nor messages can hold."""
    if isinstance(value, int):
        return not -(2**63) <= value < 2**63
    if isinstance(value, dict | list):
        inner = cast("dict[str, Any] | list[Any]", value)
        return any(map(_has_huge_number, inner.values() if isinstance(inner, dict) else inner))
    return False


def _flush(path: Path) -> None:
    """Have the system write a file, or all files of a folder, to the disk."""
    for file in path.rglob("*") if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
