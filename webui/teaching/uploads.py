"""Uploaded pictures: checked by decoding, and stored under generated names."""

import re
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from loldu.errors import LoLDUError
from loldu.files import drafted, save_png
from loldu.pictures.folder import SUFFIXES
from loldu.pictures.open import FORMAT_NAMES, FORMATS, image_size, load_image
from webui.teaching.crops import Crop, cropped

MAX_PICTURES = 20
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64 * 10**6
"""More than any phone's camera makes; 200 MB in memory."""
_KEPT_SIDE_PX = 2048
"""Length of the shorter side: four times Stable Diffusion v1.5's, for crops that zoom in."""
_FORMATS = tuple(FORMATS)
FILE_TYPES = sorted(SUFFIXES)
_FORGOTTEN_AFTER_S = 24 * 3600


@dataclass(frozen=True)
class Upload:
    """An uploaded picture.

    Attributes:
        path: Copy of the picture, upright, in RGB and without the camera's metadata.
        name: File name in the browser, for display only.
        size: Width and height in pixels.
        caption: Its caption, or "" for that of all pictures.
    """

    path: Path
    name: str
    size: tuple[int, int]
    caption: str = ""


class Uploads:
    """Folders of the uploads, `sent`, and of training pictures, `instances`."""

    def __init__(self, folder: Path) -> None:
        """Make the folders, and delete uploads of more than a day ago."""
        self.sent, self._instances = folder / "sent", folder / "instances"
        for made in (self.sent, self._instances):
            made.mkdir(parents=True, exist_ok=True)
        for old in self.sent.iterdir():
            if time.time() - old.stat().st_mtime > _FORGOTTEN_AFTER_S:
                old.unlink(missing_ok=True)

    def add(self, path: Path, name: str) -> Upload:
        """Check a file and store the picture in it.

        Args:
            path: The uploaded file.
            name: Its name in the browser.

        Raises:
            LoLDUError: If it is not a picture, or too large.
        """
        image = decoded(path, name)
        kept = self.sent / f"{secrets.token_hex(12)}.png"
        save_png(image, kept)
        return Upload(kept, name, image.size)

    def store(self, pictures: Iterable[tuple[Upload, Crop]]) -> Path:
        """Write crops and captions into a new folder, as `picture-1.png`, `picture-1.txt`, ...

        Raises:
            LoLDUError: If an upload was deleted because it is too old.
        """
        folder = self._instances / secrets.token_hex(12)
        with drafted(folder) as draft:
            draft.mkdir(mode=0o700)
            for number, (upload, crop) in enumerate(pictures, 1):
                save_png(cropped(opened(upload), crop), draft / f"picture-{number}.png")
                if upload.caption:
                    (draft / f"picture-{number}.txt").write_text(upload.caption, encoding="utf-8")
        return folder


def opened(upload: Upload) -> Image.Image:
    """Return an uploaded picture.

    Raises:
        LoLDUError: If it was deleted because it is too old.
    """
    if not upload.path.is_file():
        raise LoLDUError(f"{upload.name} was uploaded too long ago: add it again.")
    return load_image(upload.path)


def decoded(path: Path, name: str) -> Image.Image:
    """Return the picture in a file, scaled down to a shorter side of at most 2048 pixels.

    Args:
        path: The file.
        name: Its name in the browser, for messages.

    Raises:
        LoLDUError: If it is not a picture, or too large.
    """
    name = shown_name(name)
    size = path.stat().st_size
    if size == 0:
        raise LoLDUError(f"{name} is empty: choose the picture again.")
    if size > MAX_BYTES:
        raise LoLDUError(f"{name} has {size >> 20} MB: the limit is {MAX_BYTES >> 20} MB.")
    try:
        width, height = image_size(path, _FORMATS)
    except LoLDUError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            raise LoLDUError(_too_many(name)) from error
        raise LoLDUError(
            f"{name} is not a picture that can be read: use {FORMAT_NAMES}."
        ) from error
    if width * height > MAX_PIXELS:
        raise LoLDUError(_too_many(name))
    try:
        image = load_image(path, formats=_FORMATS)
    except LoLDUError as error:
        raise LoLDUError(f"{name} is incomplete: choose it again, or another picture.") from error
    scale = _KEPT_SIDE_PX / min(image.size)
    if scale < 1:
        image = image.resize(
            (round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS
        )
    return image


def shown_name(name: str) -> str:
    """Return the basename of a file for messages, at most 60 characters."""
    return re.split(r"[\\/]", name)[-1][:60] or "The file"


def _too_many(name: str) -> str:
    return f"{name} has more than {MAX_PIXELS // 10**6} million pixels: make it smaller."
