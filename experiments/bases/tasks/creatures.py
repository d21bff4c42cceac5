"""Creatures that differ in proportions, such as the length of ears or the distance of eyes.

No label of the pre-training world speaks of any of this.
"""

import colorsys
import random
from dataclasses import dataclass, fields

from PIL import Image, ImageDraw

from pocket.render import CANVAS_PX, SIZE_PX, draw_background
from pocket.world import ATTRIBUTES

_INK = (20, 10, 10)


@dataclass(frozen=True)
class Creature:
    """An individual: every proportion from -1 to 1.

    Attributes:
        hue: Of the body, from teal to blue.
        ear_hue: Of ears and feet, from red to yellow.
        aspect: From a wide body to a tall one.
        ear_length: From stubs to a hare's.
        ear_tilt: From inward to outward.
        eye_gap: From close together to far apart.
        eye_size: From beads to saucers.
        mouth: From a frown to a smile.
        belly: From no pale patch to a large one.
        feet: From small to large.
    """

    hue: float
    ear_hue: float
    aspect: float
    ear_length: float
    ear_tilt: float
    eye_gap: float
    eye_size: float
    mouth: float
    belly: float
    feet: float


def random_creature(rng: random.Random) -> Creature:
    """Return an individual with random proportions."""
    return Creature(*(rng.uniform(-1, 1) for _ in fields(Creature)))


def render_creature(creature: Creature, rng: random.Random, spread: float = 0.06) -> Image.Image:
    """Return a picture of a creature at a random place, in a slightly different pose.

    Args:
        creature: The individual.
        rng: Source of place, size, background and pose.
        spread: Standard deviation of every proportion.
    """
    posed = Creature(*(value + rng.gauss(0, spread) for value in vars(creature).values()))
    canvas = draw_background(rng.choice(ATTRIBUTES["background"]), rng)
    scale = rng.uniform(0.26, 0.36) * CANVAS_PX
    x = CANVAS_PX * (0.5 + rng.uniform(-0.12, 0.12))
    y = CANVAS_PX * (0.53 + rng.uniform(-0.04, 0.04))
    _draw(ImageDraw.Draw(canvas), posed, x, y, scale)
    return canvas.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)


def _rgb(hue: float, saturation: float, value: float) -> tuple[int, int, int]:
    red, green, blue = (round(255 * c) for c in colorsys.hsv_to_rgb(hue % 1, saturation, value))
    return red, green, blue


def _draw(draw: ImageDraw.ImageDraw, c: Creature, x: float, y: float, r: float) -> None:
    coat, trim = _rgb(0.55 + 0.08 * c.hue, 0.65, 0.8), _rgb(0.07 + 0.07 * c.ear_hue, 0.8, 0.9)
    half_w, half_h = (0.66 - 0.14 * c.aspect) * r, (0.66 + 0.14 * c.aspect) * r

    def oval(at_x: float, at_y: float, rx: float, ry: float, fill: tuple[int, int, int]) -> None:
        draw.ellipse([at_x - rx, at_y - ry, at_x + rx, at_y + ry], fill=fill)

    for side in (-1, 1):
        base_x, base_y = x + side * 0.5 * half_w, y - 0.7 * half_h
        tip_x = base_x + side * (0.1 + 0.3 * c.ear_tilt) * r
        tip_y = base_y - (0.55 + 0.3 * c.ear_length) * r
        ear = [(base_x - 0.2 * r, base_y), (base_x + 0.2 * r, base_y), (tip_x, tip_y)]
        draw.polygon(ear, fill=trim)
        foot = (0.24 + 0.09 * c.feet) * r
        oval(x + side * 0.55 * half_w, y + half_h, foot, 0.7 * foot, trim)
    oval(x, y, half_w, half_h, coat)
    patch = (0.27 + 0.22 * c.belly) * r
    oval(x, y + 0.45 * half_h, patch, 0.8 * patch, _rgb(0.12, 0.12, 0.97))
    for side in (-1, 1):
        eye, at = (0.13 + 0.06 * c.eye_size) * r, x + side * (0.26 + 0.12 * c.eye_gap) * r
        oval(at, y - 0.3 * half_h, eye, eye, (255, 255, 255))
        oval(at, y - 0.3 * half_h, 0.5 * eye, 0.5 * eye, _INK)
    curve = abs(0.2 * c.mouth) * r + 1
    box = [x - 0.22 * r, y + 0.1 * r - curve, x + 0.22 * r, y + 0.1 * r + curve]
    angles = (0, 180) if c.mouth > 0 else (180, 360)
    draw.arc(box, *angles, fill=_INK, width=max(3, round(0.08 * r)))
