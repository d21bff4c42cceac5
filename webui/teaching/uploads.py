"""Pictures that a browser sends: checked by decoding, and kept under names of our own."""

import re
import secrets
import shutil
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from loldu.errors import LoLDUError
from loldu.files import save_png
from loldu.pictures.open import load_image
from webui.teaching.crops import Crop, cropped

MAX_PICTURES = 20
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64 * 10**6
"""More than any phone's camera makes, and 200 MB in memory."""
_KEPT_SIDE_PX = 2048
"""Of the shorter side: four times what Stable Diffusion v1.5 sees, for crops that zoom in."""
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_FORGOTTEN_AFTER_S = 24 * 3600

Image.init()  # or WebP is no format yet


@dataclass(frozen=True)
class Upload:
    """A picture that was sent.

    Attributes:
        path: of its copy, which is upright, in RGB and without what a camera wrote into it.
        name: its file's in the browser, only to be shown.
        size: width and height in pixels.
    """

    path: Path
    name: str
    size: tuple[int, int]


class Uploads:
    """The folder of what was sent, `sent`, and of what is trained with, `instances`."""

    def __init__(self, folder: Path) -> None:
        """Make the folder, and forget what was sent long ago and came to nothing."""
        self._sent, self._instances = folder / "sent", folder / "instances"
        for made in (self._sent, self._instances):
            made.mkdir(parents=True, exist_ok=True)
        for old in self._sent.iterdir():
            if time.time() - old.stat().st_mtime > _FORGOTTEN_AFTER_S:
                old.unlink(missing_ok=True)

    def add(self, path: Path, name: str) -> Upload:
        """Check a file, and keep the picture in it.

        Args:
            path: where the file lies now.
            name: what its sender calls it.

        Raises:
            LoLDUError: it is no picture, or too large a one.
        """
        image = decoded(path, name)
        kept = self._sent / f"{secrets.token_hex(12)}.png"
        save_png(image, kept)
        return Upload(kept, name, image.size)

    def store(self, pictures: Iterable[tuple[Upload, Crop]]) -> Path:
        """Write the crops of pictures into a new folder, `picture-1.png` and so on.

        Raises:
            LoLDUError: one was sent so long ago that it is gone.
        """
        folder = self._instances / secrets.token_hex(12)
        unfinished = folder.with_name(f".{folder.name}")
        unfinished.mkdir(mode=0o700)
        try:
            for number, (upload, crop) in enumerate(pictures, 1):
                save_png(cropped(opened(upload), crop), unfinished / f"picture-{number}.png")
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished)
            raise
        return folder


def opened(upload: Upload) -> Image.Image:
    """The picture that was sent.

    Raises:
        LoLDUError: it was sent so long ago that it is gone.
    """
    if not upload.path.is_file():
        raise LoLDUError(f"{upload.name} was sent too long ago: add it again.")
    return load_image(upload.path)


def decoded(path: Path, name: str) -> Image.Image:
    """The picture in a file, no larger than is of use.

    Args:
        path: of the file.
        name: what its sender calls it, for what is told.

    Raises:
        LoLDUError: it is no picture, or too large a one.
    """
    name = shown_name(name)
    size = path.stat().st_size
    if size == 0:
        raise LoLDUError(f"{name} is empty: choose the picture again.")
    if size > MAX_BYTES:
        raise LoLDUError(f"{name} has {size >> 20} MB; {MAX_BYTES >> 20} are the most.")
    try:
        with Image.open(path, formats=_FORMATS) as file:
            width, height = file.size  # told by the header, before anything is decoded
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise LoLDUError(_too_many(name)) from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        raise LoLDUError(
            f"{name} is not a picture that can be read: send JPEG, PNG, WebP, BMP or GIF."
        ) from error
    if width * height > MAX_PIXELS:
        raise LoLDUError(_too_many(name))
    try:
        image = load_image(path)
    except LoLDUError as error:
        raise LoLDUError(
            f"{name} cannot be read to its end: choose it again, or another."
        ) from error
    scale = _KEPT_SIDE_PX / min(image.size)
    if scale < 1:
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
        )
    image.info.clear()
    return image


def shown_name(name: str) -> str:
    """The name of a file as it is told: the last part of a path, and of it only so much."""
    return re.split(r"[\\/]", name)[-1][:60] or "The file"


def _too_many(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 10**6} million pixels: make it smaller."
