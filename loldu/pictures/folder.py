"""The pictures of a folder, and the caption, mask and number of repeats of each."""

import hashlib
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loldu.errors import LoLDUError, Mistakes
from loldu.pictures.captions import (
    METADATA,
    Line,
    is_text,
    read_metadata,
    read_text,
    same_name,
)
from loldu.pictures.mask import load_mask
from loldu.pictures.open import FORMAT_NAMES, FORMATS, load_image

logger = logging.getLogger(__name__)

SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
"""Endings of the files that count as pictures."""
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
        LoLDUError: If there is no such folder, no picture in it, or a name that is not UTF-8.
    """
    if not folder.is_dir():
        raise LoLDUError(f"There is no folder {folder}; give one with the pictures.")
    files = sorted(path for path in folder.iterdir() if not path.is_dir())
    images = [path for path in files if is_picture(path) and not _is_device(path)]
    known = {folder / METADATA, *images}
    for ending in (".txt", MASK_ENDING):
        known.update(beside(images, ending).values())
    others = [path.name for path in files if path not in known]
    if others:
        logger.info("Ignored in %s, not a picture: %s", folder, ", ".join(others))
    for image in images:
        if not is_text(str(image)):
            name = repr(os.fsencode(image))[2:-1]
            raise LoLDUError(f"The name {name} is not UTF-8; rename the file or its folder.")
    if not images:
        raise LoLDUError(f"There are no pictures in {folder}; put {FORMAT_NAMES} files there.")
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
    sidecars = beside(images, ".txt")
    for index, path in enumerate(images):
        line = lines.get(path.name, Line(None))
        prompt = prompts[index % len(prompts)] if prompts else None
        sidecar = sidecars.get(path)
        with mistakes.collected():
            caption = read_text(sidecar).strip() if sidecar else line.text or prompt
            if sidecar and not caption:
                raise LoLDUError(f"{sidecar} is empty: write the prompt there, or remove it.")
            if not caption:
                where = path.with_suffix(".txt")
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
    masks = beside(paths, MASK_ENDING)
    images = [replace(image, mask=masks.get(image.path)) for image in images]
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


def beside(images: Sequence[Path], ending: str) -> dict[Path, Path]:
    """Return the file next to each picture that has its name and this ending, in any capitals.

    Pictures without such a file are left out.

    Args:
        images: Pictures of one folder.
        ending: What follows the name, in small letters.
    """
    if not images:
        return {}
    there = {
        same_name(path.stem + path.suffix.lower()): path for path in images[0].parent.iterdir()
    }
    found: dict[Path, Path] = {}
    for image in images:
        named = image.with_name(image.stem + ending)
        for path in (named, there.get(same_name(named.name))):
            # Unlike Path.is_file, this takes a name that is too long as that of no file.
            if path is not None and os.path.isfile(path):
                found.setdefault(image, path)
    return found


def is_picture(path: Path) -> bool:
    """Tell by the name whether a file is a picture.

    Unreadable pictures count, so that opening them reports them. Hidden files and masks do not.
    """
    return (
        path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and not path.name.lower().endswith(MASK_ENDING)
    )


def _is_device(path: Path) -> bool:
    """Tell whether a path is a named pipe or the like, from which reading may never end."""
    return path.exists() and not path.is_file()
