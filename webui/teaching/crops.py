"""The square crop of a training picture."""

from dataclasses import dataclass

from PIL import Image, ImageDraw

MAX_ZOOM = 4.0
_SHADE = (0, 0, 0, 140)


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


def outlined(image: Image.Image, crop: Crop, side_px: int) -> Image.Image:
    """Return the whole picture, scaled to a longer side of `side_px`, dark outside the square."""
    scale = side_px / max(image.size)
    small = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))
    shade = Image.new("RGBA", small.size, _SHADE)
    left, top, right, bottom = crop.box(small.size)
    ImageDraw.Draw(shade).rectangle(
        (left, top, right - 1, bottom - 1), fill=(0, 0, 0, 0), outline="white", width=2
    )
    return Image.alpha_composite(small.convert("RGBA"), shade).convert("RGB")
