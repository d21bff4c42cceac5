"""A picture of the subject alone: gray outside its mask, and cropped around it."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from loldu.pictures.mask import load_mask
from loldu.pictures.open import load_image

SUBJECT = {"dino_subject": "dino", "clip_subject": "clip"}
"""Encoders of the subject alone, each with the encoder whose network it uses."""
VERSION = "subject 1"
"""Version of this code; raise it to make older cache entries unused."""
GRAY = (128, 128, 128)
WHITE = 128
"""Smallest value of a mask that belongs to the subject."""


def load_subject(path: Path, mask: Path) -> Image.Image | None:
    """Return the picture of a file without what is around its subject, or None without a subject.

    Raises:
        LoLDUError: If a file cannot be read, or the mask has another shape than the picture.
    """
    image = load_image(path, to_srgb=False)  # as the features of whole pictures
    return subject_alone(image, load_mask(mask, image.size, may_be_black=True))


def subject_alone(image: Image.Image, mask: Image.Image) -> Image.Image | None:
    """Return the picture with gray outside a mask, cropped to a square around the subject.

    The square stays in the picture and moves to fit; a subject that is longer than the picture's
    shorter side gets a part as high or as wide as the picture. A white mask returns the picture.

    Args:
        image: Picture in RGB.
        mask: Gray picture of the same size; white is the subject.

    Returns:
        None if no pixel of the mask is white.
    """
    box = mask.point([0] * WHITE + [255] * (256 - WHITE)).getbbox()
    if box is None:
        return None
    alone = Image.composite(image, Image.new("RGB", image.size, GRAY), mask)
    side = max(box[2] - box[0], box[3] - box[1])
    (left, right), (top, bottom) = (
        _widen(box[axis], box[axis + 2], side, image.size[axis]) for axis in (0, 1)
    )
    return alone.crop((left, top, right, bottom))


def _widen(start: int, stop: int, length: int, limit: int) -> tuple[int, int]:
    """Return a range of this length around another one, inside 0..limit."""
    length = min(length, limit)
    first = min(max(0, start - (length - (stop - start)) // 2), limit - length)
    return first, first + length
