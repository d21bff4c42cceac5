"""Car models that differ in proportions only, such as the wheelbase or the slope of the cabin.

No label of the pre-training world speaks of any of this.
"""

import random
from dataclasses import dataclass, fields

from PIL import Image, ImageDraw

from pocket.render import CANVAS_PX, SIZE_PX, draw_background
from pocket.world import ATTRIBUTES

_PAINT, _GLASS, _TYRE, _HUB = (225, 70, 50), (200, 230, 245), (25, 25, 30), (230, 230, 230)


@dataclass(frozen=True)
class CarModel:
    """A make of car: every proportion from -1 to 1.

    Attributes:
        length: From short to long.
        height: Of the body, from flat to high.
        cabin_height: From flat to high.
        cabin_front: Where the windscreen begins, from far back to far in front.
        cabin_back: Where the cabin ends, from steep to sloping far behind.
        wheel: From small to large.
        wheelbase: From close together to far apart.
        window: From slits to large panes.
        rounding: Of the body's corners.
    """

    length: float
    height: float
    cabin_height: float
    cabin_front: float
    cabin_back: float
    wheel: float
    wheelbase: float
    window: float
    rounding: float


def random_car_model(rng: random.Random) -> CarModel:
    """Return a car model with random proportions."""
    return CarModel(*(rng.uniform(-1, 1) for _ in fields(CarModel)))


def render_car(model: CarModel, rng: random.Random, spread: float = 0.06) -> Image.Image:
    """Return a picture of a car of a model, at a random place.

    Args:
        model: Car model.
        rng: Source of place, size and background.
        spread: Standard deviation of every proportion.
    """
    seen = CarModel(*(value + rng.gauss(0, spread) for value in vars(model).values()))
    background = rng.choice([b for b in ATTRIBUTES["background"] if b not in ("bricks", "yellow")])
    canvas = draw_background(background, rng)
    scale = rng.uniform(0.3, 0.38) * CANVAS_PX
    x = CANVAS_PX * (0.5 + rng.uniform(-0.1, 0.1))
    y = CANVAS_PX * (0.53 + rng.uniform(-0.05, 0.05))
    _draw(ImageDraw.Draw(canvas), seen, x, y, scale)
    return canvas.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)


def _draw(
    draw: ImageDraw.ImageDraw,
    c: CarModel,
    x: float,
    y: float,
    r: float,
) -> None:
    half_w, half_h = (0.95 + 0.2 * c.length) * r, (0.24 + 0.08 * c.height) * r
    top = y - half_h
    roof = top - (0.38 + 0.14 * c.cabin_height) * r
    front, back = (0.35 + 0.22 * c.cabin_front) * half_w, (0.72 + 0.2 * c.cabin_back) * half_w
    corners = [(-front - 0.25 * r, top), (-front, roof), (0.35 * half_w, roof), (back, top)]
    draw.polygon([(x + at, height) for at, height in corners], fill=_PAINT)
    box = [x - half_w, top - 1, x + half_w, y + half_h]
    draw.rounded_rectangle(box, (0.12 + 0.1 * c.rounding) * r, fill=_PAINT)
    pane = (0.6 + 0.25 * c.window) * (top - roof)
    draw.rectangle([x - front, roof + 0.1 * pane, x + 0.05 * half_w, roof + pane], fill=_GLASS)
    draw.rectangle(
        [x + 0.13 * half_w, roof + 0.1 * pane, x + 0.35 * half_w, roof + pane], fill=_GLASS
    )
    for side in (-1, 1):
        wheel, at = (0.26 + 0.08 * c.wheel) * r, x + side * (0.55 + 0.15 * c.wheelbase) * half_w
        for radius, fill in ((wheel, _TYRE), (0.35 * wheel, _HUB)):
            around = [at - radius, y + half_h - radius, at + radius, y + half_h + radius]
            draw.ellipse(around, fill=fill)
