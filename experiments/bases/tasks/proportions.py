"""Creatures and car models that differ in proportions only, such as ears or the wheelbase.

No label of the pre-training world describes these proportions.
"""

import colorsys
import random
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from PIL import Image, ImageDraw

from pocket.render import CANVAS_PX, SIZE_PX, draw_background
from pocket.world import ATTRIBUTES

_Rgb = tuple[int, int, int]
_INK = (20, 10, 10)
_PAINT, _GLASS, _TYRE, _HUB = (225, 70, 50), (200, 230, 245), (25, 25, 30), (230, 230, 230)


@dataclass(frozen=True)
class Proportions:
    """A thing with proportions from -1 to 1; a subclass draws it.

    Attributes:
        BACKGROUNDS: Backgrounds of pictures.
        SCALE: Smallest and largest size, as a share of the canvas.
        SHIFT: Largest distance from the middle, across and down, as a share of the canvas.
    """

    BACKGROUNDS: ClassVar[tuple[str, ...]] = ATTRIBUTES["background"]
    SCALE: ClassVar[tuple[float, float]]
    SHIFT: ClassVar[tuple[float, float]]

    @classmethod
    def at_random(cls, rng: random.Random) -> Self:
        """Return a thing with random proportions."""
        return cls(*(rng.uniform(-1, 1) for _ in fields(cls)))

    def render(self, rng: random.Random, spread: float = 0.06) -> Image.Image:
        """Return a picture at a random place, in slightly different proportions.

        Args:
            rng: Source of place, size, background and proportions.
            spread: Standard deviation of every proportion.
        """
        seen = type(self)(*(value + rng.gauss(0, spread) for value in vars(self).values()))
        canvas = draw_background(rng.choice(self.BACKGROUNDS), rng)
        scale = rng.uniform(*self.SCALE) * CANVAS_PX
        across, down = self.SHIFT
        x = CANVAS_PX * (0.5 + rng.uniform(-across, across))
        y = CANVAS_PX * (0.53 + rng.uniform(-down, down))
        seen.draw(ImageDraw.Draw(canvas), x, y, scale)
        return canvas.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
        """Draw the thing around a point, in a size."""
        raise NotImplementedError


@dataclass(frozen=True)
class Creature(Proportions):
    """An individual: every proportion from -1 to 1."""

    hue: float  # of the body, from teal to blue
    ear_hue: float  # of ears and feet, from red to yellow
    aspect: float  # from a wide body to a tall one
    ear_length: float  # from stubs to a hare's
    ear_tilt: float  # from inward to outward
    eye_gap: float  # from close together to far apart
    eye_size: float  # from beads to saucers
    mouth: float  # from a frown to a smile
    belly: float  # from no pale patch to a large one
    feet: float  # from small to large

    SCALE = (0.26, 0.36)
    SHIFT = (0.12, 0.04)

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
        """Draw the creature around a point, in a size."""
        coat = _rgb(0.55 + 0.08 * self.hue, 0.65, 0.8)
        trim = _rgb(0.07 + 0.07 * self.ear_hue, 0.8, 0.9)
        half_w, half_h = (0.66 - 0.14 * self.aspect) * r, (0.66 + 0.14 * self.aspect) * r

        def oval(at_x: float, at_y: float, rx: float, ry: float, fill: _Rgb) -> None:
            draw.ellipse([at_x - rx, at_y - ry, at_x + rx, at_y + ry], fill=fill)

        for side in (-1, 1):
            base_x, base_y = x + side * 0.5 * half_w, y - 0.7 * half_h
            tip_x = base_x + side * (0.1 + 0.3 * self.ear_tilt) * r
            tip_y = base_y - (0.55 + 0.3 * self.ear_length) * r
            ear = [(base_x - 0.2 * r, base_y), (base_x + 0.2 * r, base_y), (tip_x, tip_y)]
            draw.polygon(ear, fill=trim)
            foot = (0.24 + 0.09 * self.feet) * r
            oval(x + side * 0.55 * half_w, y + half_h, foot, 0.7 * foot, trim)
        oval(x, y, half_w, half_h, coat)
        patch = (0.27 + 0.22 * self.belly) * r
        oval(x, y + 0.45 * half_h, patch, 0.8 * patch, _rgb(0.12, 0.12, 0.97))
        for side in (-1, 1):
            eye, at = (0.13 + 0.06 * self.eye_size) * r, x + side * (0.26 + 0.12 * self.eye_gap) * r
            oval(at, y - 0.3 * half_h, eye, eye, (255, 255, 255))
            oval(at, y - 0.3 * half_h, 0.5 * eye, 0.5 * eye, _INK)
        curve = abs(0.2 * self.mouth) * r + 1
        box = [x - 0.22 * r, y + 0.1 * r - curve, x + 0.22 * r, y + 0.1 * r + curve]
        angles = (0, 180) if self.mouth > 0 else (180, 360)
        draw.arc(box, *angles, fill=_INK, width=max(3, round(0.08 * r)))


def _rgb(hue: float, saturation: float, value: float) -> _Rgb:
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


@dataclass(frozen=True)
class CarModel(Proportions):
    """A make of car: every proportion from -1 to 1."""

    length: float  # from short to long
    height: float  # of the body, from flat to high
    cabin_height: float  # from flat to high
    cabin_front: float  # where the windscreen begins, from far back to far in front
    cabin_back: float  # where the cabin ends, from steep to sloping far behind
    wheel: float  # from small to large
    wheelbase: float  # from close together to far apart
    window: float  # from slits to large panes
    rounding: float  # of the body's corners

    BACKGROUNDS = tuple(b for b in ATTRIBUTES["background"] if b not in ("bricks", "yellow"))
    SCALE = (0.3, 0.38)
    SHIFT = (0.1, 0.05)

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float, r: float) -> None:
        """Draw the car around a point, in a size."""
        half_w, half_h = (0.95 + 0.2 * self.length) * r, (0.24 + 0.08 * self.height) * r
        top = y - half_h
        roof = top - (0.38 + 0.14 * self.cabin_height) * r
        front = (0.35 + 0.22 * self.cabin_front) * half_w
        back = (0.72 + 0.2 * self.cabin_back) * half_w
        corners = [(-front - 0.25 * r, top), (-front, roof), (0.35 * half_w, roof), (back, top)]
        draw.polygon([(x + at, height) for at, height in corners], fill=_PAINT)
        box = [x - half_w, top - 1, x + half_w, y + half_h]
        draw.rounded_rectangle(box, (0.12 + 0.1 * self.rounding) * r, fill=_PAINT)
        pane = (0.6 + 0.25 * self.window) * (top - roof)
        for left, right in ((-front, 0.05 * half_w), (0.13 * half_w, 0.35 * half_w)):
            draw.rectangle([x + left, roof + 0.1 * pane, x + right, roof + pane], fill=_GLASS)
        for side in (-1, 1):
            wheel = (0.26 + 0.08 * self.wheel) * r
            at = x + side * (0.55 + 0.15 * self.wheelbase) * half_w
            for radius, fill in ((wheel, _TYRE), (0.35 * wheel, _HUB)):
                around = [at - radius, y + half_h - radius, at + radius, y + half_h + radius]
                draw.ellipse(around, fill=fill)
