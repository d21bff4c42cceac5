"""The pictures of a folder, and the caption, mask and number of repeats of each."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loldu.errors import LoLDUError, Mistakes
from loldu.pictures.captions import METADATA, Line, read_metadata, read_text, same_name
from loldu.pictures.mask import load_mask
from loldu.pictures.open import load_image

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
MASK_ENDING = "-masklabel.png"
"""`dog.jpg` has its mask in `dog-masklabel.png`, the name that OneTrainer and its tools use."""


@dataclass(frozen=True)
class CaptionedImage:
    """A picture file and the prompt it is trained with.

    Attributes:
        path: Path of the picture.
        caption: Its prompt.
        repeats: How often it is shown per epoch.
        mask: File that marks what to learn in it.
    """

    path: Path
    caption: str
    repeats: int = 1
    mask: Path | None = None


def list_images(folder: Path) -> list[Path]:
    """Return the pictures of a folder, sorted by name; one log line names the files left out.

    Raises:
        LoLDUError: If there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise LoLDUError(f"There is no folder {folder}; give one with the pictures.")
    files = sorted(path for path in folder.iterdir() if not path.is_dir())
    images = [path for path in files if is_picture(path)]
    belonging = {
        found for image in images for end in (".txt", MASK_ENDING) if (found := beside(image, end))
    }
    others = [
        path.name
        for path in files
        if not is_picture(path) and path not in belonging and path.name != METADATA
    ]
    if others:
        logger.info("Ignored in %s, not a picture: %s", folder, ", ".join(others))
    if not images:
        raise LoLDUError(
            f"There are no pictures in {folder}; put jpg, png, webp, bmp or gif files there."
        )
    return images


def read_captions(
    images: Sequence[Path], prompts: Sequence[str], flag: str
) -> list[CaptionedImage]:
    """Give each picture the text of its `.txt` or `metadata.jsonl` line, or else a prompt.

    If there are several prompts, the pictures take them in turn.

    Args:
        images: Pictures of one folder.
        prompts: Prompts of pictures without a caption.
        flag: The option that gives the prompts, for messages.

    Raises:
        LoLDUError: If a picture has no caption and there is no prompt, or a caption is unreadable.
    """
    mistakes = Mistakes()
    lines: dict[str, Line] = {}
    with mistakes.collected():
        lines = read_metadata(images[0].parent, [image.name for image in images])
    captioned: list[CaptionedImage] = []
    for index, path in enumerate(images):
        line = lines.get(path.name, Line(None))
        prompt = prompts[index % len(prompts)] if prompts else None
        sidecar = beside(path, ".txt")
        with mistakes.collected():
            caption = read_text(sidecar).strip() if sidecar else line.text or prompt
            if not caption:
                where = sidecar or path.with_suffix(".txt")
                raise LoLDUError(f"{path} has no caption: give {flag}, or a prompt in {where}.")
            captioned.append(CaptionedImage(path, caption, line.repeats))
    mistakes.tell()
    return captioned


def open_pictures(
    folder: Path, prompts: Sequence[str], flag: str, resolution: int
) -> list[CaptionedImage]:
    """Return a folder's pictures with captions and masks, after opening every file once.

    Args:
        folder: Folder of the pictures.
        prompts: Prompts of pictures without a caption, in turn.
        flag: The option that gives the prompts, for messages.
        resolution: Side of the training pictures in pixels.

    Raises:
        LoLDUError: If any picture, mask or caption cannot be used; the message names all of them.
    """
    paths = list_images(folder)
    images = [CaptionedImage(path, "") for path in paths]  # to be opened even without captions
    mistakes = Mistakes()
    with mistakes.collected():
        images = read_captions(paths, prompts, flag)
    images = [replace(image, mask=beside(image.path, MASK_ENDING)) for image in images]
    with mistakes.collected():
        check_images(images, resolution)
    mistakes.tell()
    return images


def digest(images: Sequence[CaptionedImage]) -> str:
    """Return a digest of pictures, captions, masks and repeats; their paths do not count."""
    whole = hashlib.sha256()
    for image in images:
        parts = [image.path.read_bytes(), image.caption.encode()]
        if image.mask is not None:
            parts.append(image.mask.read_bytes())
        for part in parts * image.repeats:
            whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:16]


def check_images(images: Sequence[CaptionedImage], resolution: int) -> None:
    """Open every picture and mask.

    Raises:
        LoLDUError: If any cannot be used, with one sentence for each.
    """
    mistakes = Mistakes()
    for image in images:
        with mistakes.collected():
            size = load_image(image.path, min_side_px(resolution)).size
            if image.mask is not None:
                load_mask(image.mask, size)
    mistakes.tell()


def min_side_px(resolution: int) -> int:
    """Return a quarter of the resolution: smaller pictures only teach blur."""
    return math.ceil(resolution / 4)


def beside(image: Path, ending: str) -> Path | None:
    """Return the file next to a picture with its name and this ending, in any capitals."""
    named = image.with_name(image.stem + ending)
    if named.is_file():
        return named
    wanted = same_name(named.name)
    for path in image.parent.iterdir():
        if same_name(path.stem + path.suffix.lower()) == wanted and path.is_file():
            return path
    return None


def is_picture(path: Path) -> bool:
    """Tell by the name whether a file is a picture.

    Unreadable pictures count, so that opening them reports them. Hidden files and masks do not.
    """
    return (
        path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and not path.name.lower().endswith(MASK_ENDING)
    )
