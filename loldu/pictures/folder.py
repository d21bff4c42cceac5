"""The pictures of a folder, and the caption, mask and weight of each."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
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
        path: of the picture.
        caption: its prompt.
        repeats: how often it comes in an epoch.
        mask: the file that marks what is to be learned of it.
    """

    path: Path
    caption: str
    repeats: int = 1
    mask: Path | None = None


def list_images(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name; other files are left out with one line of log.

    Raises:
        LoLDUError: when there is no such folder or no picture in it.
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
        logger.info("Ignoring in %s what is not a picture: %s", folder, ", ".join(others))
    if not images:
        raise LoLDUError(
            f"There are no pictures in {folder}; put jpg, png, webp, bmp or gif files there."
        )
    return images


def read_captions(
    images: Sequence[Path], prompts: Sequence[str], flag: str
) -> list[CaptionedImage]:
    """Each picture with the text of its `.txt`, or of its line of `metadata.jsonl`, or a prompt.

    Of several prompts the pictures take one after another.

    Raises:
        LoLDUError: when a picture has none of them, or a caption cannot be read; `flag` names the
            option that gives the prompts.
    """
    mistakes = Mistakes()
    lines: dict[str, Line] = {}
    with mistakes.collected():
        lines = read_metadata(images[0].parent, [image.name for image in images])
    captioned = []
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


def digest(images: Sequence[CaptionedImage]) -> str:
    """What tells these pictures, captions and masks from others, wherever they are."""
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
        LoLDUError: with a sentence for each that cannot be used.
    """
    mistakes = Mistakes()
    for image in images:
        with mistakes.collected():
            size = load_image(image.path, min_side_px(resolution)).size
            if image.mask is not None:
                load_mask(image.mask, size)
    mistakes.tell()


def min_side_px(resolution: int) -> int:
    """Under a quarter of the resolution there is nothing left to learn but blur."""
    return math.ceil(resolution / 4)


def beside(image: Path, ending: str) -> Path | None:
    """The file beside a picture that has its name but for the ending, whatever its capitals."""
    named = image.with_name(image.stem + ending)
    if named.is_file():
        return named
    wanted = same_name(named.name)
    for path in image.parent.iterdir():
        if same_name(path.stem + path.suffix.lower()) == wanted and path.is_file():
            return path
    return None


def is_picture(path: Path) -> bool:
    """By its name alone: what cannot be read is told, not left out; hidden files are systems'."""
    return (
        path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and not path.name.lower().endswith(MASK_ENDING)
    )
