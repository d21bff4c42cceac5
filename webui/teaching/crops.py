"""The square crop of a training picture."""

import io
from dataclasses import dataclass
from html import escape

from PIL import Image

from webui.served import address, in_cache

MAX_ZOOM = 4.0
_SHOWN_PX = 1024


@dataclass(frozen=True)
class Crop:
    """A square inside a picture.

    Attributes:
        zoom: Shorter side of the picture divided by the side of the square; from 1.
        x: Horizontal place of the square, from 0 (left edge) to 1 (right edge).
        y: Vertical place of the square, from 0 (top) to 1 (bottom).
    """

    zoom: float | int = 1
    x: float | int = 0.5
    y: float | int = 0.5

    def box(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom in pixels, in a picture of this size."""
        side = max(1, round(min(size) / min(max(self.zoom, 1.0), MAX_ZOOM)))
        left, top = (
            round((length - side) * min(max(place, 0.0), 1.0))
            for length, place in zip(size, (self.x, self.y), strict=True)
        )
        return left, top, left + side, top + side


def cropped(image: Image.Image, crop: Crop) -> Image.Image:
    """Return the square at the picture's full resolution."""
    return image.crop(crop.box(image.size))


def cropper(image: Image.Image, crop: Crop, index: int) -> str:
    """Return a picture with its crop as HTML, to be moved by hand, wheel, fingers or keys.

    Args:
        image: The whole picture.
        crop: Its crop.
        index: Its place among the pictures, which every change names.
    """
    width, height = image.size
    image = image.copy()
    image.thumbnail((_SHOWN_PX, _SHOWN_PX))
    content = io.BytesIO()
    image.save(content, "WEBP", quality=88)
    ranges = "".join(
        f'<label>{label}<input type="range" data-of="{name}" min="{low}" max="{high}" '
        f'step="{step}" value="{value}"></label>'
        for name, label, low, high, step, value in (
            ("zoom", "Zoom", 1, MAX_ZOOM, 0.05, crop.zoom),
            ("x", "Left to right", 0, 1, 0.01, crop.x),
            ("y", "Top to bottom", 0, 1, 0.01, crop.y),
        )
    )
    source = address(in_cache(content.getvalue(), "whole.webp"))
    return (
        f'<div class="cropper" data-index="{index}" data-width="{width}" data-height="{height}">'
        f'<div class="whole" style="--ratio: {width / height:.4f}">'
        f'<img alt="" draggable="false" src="{escape(source)}"><i></i></div>'
        f'<p class="hint">Drag the square; wheel or pinch to zoom.</p>'
        f'<div class="ranges">{ranges}</div></div>'
    )
