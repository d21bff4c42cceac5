"""Draws a scene: flat-shaded, anti-aliased, 64 x 64 pixels, about 3 ms a picture.

Everything is drawn at three times the size and reduced at the end. Small random changes of
positions and colors make every picture of a scene different.
"""

import math
import random
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from pocket.world import COLORS, Scene, other_thing

SIZE_PX = 64
CANVAS_PX = 3 * SIZE_PX
_Rgb = tuple[int, int, int]
_GROUND: dict[str, tuple[_Rgb, _Rgb, float]] = {  # ground, sky, amplitude of the ground's grain
    "meadow": ((70, 150, 50), (160, 210, 245), 30),
    "sand": ((225, 195, 130), (150, 205, 240), 14),
    "snow": ((235, 240, 250), (175, 190, 215), 6),
    "sea": ((25, 110, 170), (170, 215, 240), 0),
}
_HALF_BODY = {"round": (0.76, 0.66), "square": (0.7, 0.6), "tall": (0.52, 0.76)}
_GLASS, _INK = (200, 230, 245), (20, 10, 10)


def render(scene: Scene, rng: random.Random) -> Image.Image:
    """Return a scene as a 64 x 64 RGB picture."""
    canvas = draw_background(scene["background"], rng)
    beside = scene.get("relation") == "beside"
    size = 0.21 if beside else {"medium": 0.27, "large": 0.35}[scene["size"]]
    scale = size * rng.uniform(0.94, 1.06) * CANVAS_PX
    aside = 0.235 if beside else 0.14
    shift = {"center": 0.0, "left": -aside, "right": aside}[scene["position"]] * CANVAS_PX
    x = CANVAS_PX / 2 + shift + rng.gauss(0, 0.015 * CANVAS_PX)
    y = CANVAS_PX / 2 + rng.gauss(0, 0.015 * CANVAS_PX)
    if other := other_thing(scene):
        _draw_other(canvas, scene, other, rng, x, y, scale)
    draw_thing(canvas, scene, rng, x, y, scale)
    return canvas.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)


def draw_thing(
    canvas: Image.Image, scene: Scene, rng: random.Random, x: float, y: float, r: float
) -> None:
    """Draw the thing of a scene around (x, y), about 2 r wide."""
    draw = {"toy": _toy, "car": _car, "house": _house, "shape": _shape}[scene["kind"]]
    draw(canvas, scene, rng, x, y, r)


def _draw_other(
    canvas: Image.Image,
    scene: Scene,
    other: Scene,
    rng: random.Random,
    x: float,
    y: float,
    r: float,
) -> None:
    """Draw the second thing of a scene: beside the first, or behind the hand that holds it."""
    sign = 1 if scene["side"] == "right" else -1
    if scene["relation"] == "holding":
        reach = _HALF_BODY[scene["body"]][0] + 0.26
        ball = _jittered(COLORS[other["color"]], rng)
        _disc(ImageDraw.Draw(canvas), x + sign * reach * r, y + 0.3 * r, 0.3 * r, ball)
        return
    filled = {"ear_color": other["color"], "feet_color": other["color"]} | other
    filled["door_color"] = filled.get("roof_color", "")
    draw_thing(canvas, filled, rng, CANVAS_PX - x, y + rng.gauss(0, 0.015 * CANVAS_PX), r)


def _jittered(color: _Rgb, rng: random.Random, spread: float = 6) -> _Rgb:
    red, green, blue = (min(255, max(0, round(c + rng.gauss(0, spread)))) for c in color)
    return red, green, blue


@cache
def _grid() -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, x = np.mgrid[0.0:CANVAS_PX, 0.0:CANVAS_PX]
    return y, x


@cache
def _grain(index: int) -> NDArray[np.float64]:
    coarse = np.random.default_rng(index).random((CANVAS_PX // 3, CANVAS_PX // 3))
    return np.kron(coarse, np.ones((3, 3))).astype(np.float64)


def draw_background(name: str, rng: random.Random) -> Image.Image:
    """Return a canvas with the background alone, three times the final size."""
    if name in COLORS:
        return Image.new("RGB", (CANVAS_PX, CANVAS_PX), _jittered(COLORS[name], rng))
    y, x = _grid()
    if name == "bricks":
        row, column = y // (CANVAS_PX // 8), x + rng.randrange(CANVAS_PX // 4)
        column = column + (row % 2) * (CANVAS_PX // 8)
        mortar = (y % (CANVAS_PX // 8) < 4) | (column % (CANVAS_PX // 4) < 4)
        pixels = np.where(mortar[..., None], (205, 195, 185), (165, 75, 55)).astype(float)
    elif name == "night":
        pixels = np.array((15, 20, 60)) + (y / CANVAS_PX)[..., None] * np.array((15, 10, 40))
    else:
        ground, sky, amplitude = _GROUND[name]
        below = (y > rng.uniform(0.42, 0.58) * CANVAS_PX)[..., None]
        texture = amplitude * (_grain(rng.randrange(32)) - 0.5)
        if name == "sea":
            phase = rng.uniform(0, 2 * math.pi)
            texture = 12 * np.sin(
                16 * math.pi * y / CANVAS_PX + 1.9 * np.sin(12 * x / CANVAS_PX + phase)
            )
        pixels = np.where(below, np.array(ground) + texture[..., None], np.array(sky))
    canvas = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    if name == "night":
        draw = ImageDraw.Draw(canvas)
        for _ in range(12):
            _disc(
                draw,
                rng.uniform(0, CANVAS_PX),
                rng.uniform(0, CANVAS_PX),
                rng.uniform(2, 4),
                (255, 250, 210),
            )
    return canvas


def _surface(scene: Scene, rng: random.Random, period: float) -> Image.Image:
    """Return a canvas filled with the object's paint: plain, striped or dotted."""
    base = _jittered(COLORS[scene["color"]], rng)
    paint = Image.new("RGB", (CANVAS_PX, CANVAS_PX), base)
    if scene.get("pattern", "plain") == "plain":
        return paint
    y, x = _grid()
    y, x = y + rng.uniform(0, period), x + rng.uniform(0, period)
    if scene["pattern"] == "striped":
        mask = y % period < 0.45 * period
    else:
        odd_row = (y // period) % 2
        dx, dy = (x + odd_row * period / 2) % period - period / 2, y % period - period / 2
        mask = dx**2 + dy**2 < (0.31 * period) ** 2
    paint.paste(_jittered(COLORS[scene["accent"]], rng), mask=Image.fromarray(mask))
    return paint


def _mask() -> tuple[Image.Image, ImageDraw.ImageDraw]:
    mask = Image.new("L", (CANVAS_PX, CANVAS_PX), 0)
    return mask, ImageDraw.Draw(mask)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: _Rgb | int) -> None:
    draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)


def _oval(
    draw: ImageDraw.ImageDraw, x: float, y: float, rx: float, ry: float, fill: _Rgb | int
) -> None:
    draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=fill)


def _toy(
    canvas: Image.Image, scene: Scene, rng: random.Random, x: float, y: float, r: float
) -> None:
    draw = ImageDraw.Draw(canvas)
    ear_color = _jittered(COLORS[scene["ear_color"]], rng)
    feet_color = _jittered(COLORS[scene["feet_color"]], rng)
    half_w, half_h = _HALF_BODY[scene["body"]]
    half_w, half_h, y = half_w * r, half_h * r, y + 0.2 * r
    top, bottom = y - half_h, y + half_h
    for side in (-1, 1):
        ear_x = x + side * half_w * 0.58
        if scene["ears"] == "pointy":
            tip = (ear_x + side * 0.14 * r, top - 0.46 * r)
            draw.polygon(
                [(ear_x - 0.3 * r, top + 0.32 * r), (ear_x + 0.3 * r, top + 0.32 * r), tip],
                fill=ear_color,
            )
        elif scene["ears"] == "round":
            _disc(draw, ear_x + side * 0.08 * r, top - 0.02 * r, 0.31 * r, ear_color)
        else:
            _oval(draw, ear_x, top - 0.16 * r, 0.17 * r, 0.48 * r, ear_color)
        _oval(draw, x + side * half_w * 0.52, bottom + 0.02 * r, 0.28 * r, 0.2 * r, feet_color)
        _oval(draw, x + side * (half_w + 0.06 * r), y + 0.14 * r, 0.17 * r, 0.18 * r, feet_color)
    body, on_body = _mask()
    box = [x - half_w, top, x + half_w, bottom]
    if scene["body"] == "square":
        on_body.rounded_rectangle(box, radius=0.14 * r, fill=255)
    else:
        on_body.ellipse(box, fill=255)
    canvas.paste(_surface(scene, rng, 0.46 * r), mask=body)
    for side in (-1, 1):
        eye_x, eye_y = x + side * half_w * 0.4, top + 0.62 * half_h
        _disc(draw, eye_x, eye_y, 0.18 * r, (255, 255, 255))
        _disc(draw, eye_x, eye_y, 0.09 * r, _INK)
    smile = [x - 0.2 * r, y - 0.1 * r, x + 0.2 * r, y + 0.26 * r]
    draw.arc(smile, 20, 160, fill=_INK, width=max(3, round(0.08 * r)))


def _car(
    canvas: Image.Image, scene: Scene, rng: random.Random, x: float, y: float, r: float
) -> None:
    half_w, h = 1.1 * r, 0.42 * r
    y = y + 0.1 * r
    body, on_body = _mask()
    on_body.rounded_rectangle(
        [x - half_w, y - 0.4 * h, x + half_w, y + 1.1 * h], 0.16 * r, fill=255
    )
    cabin = [(-0.62, -0.3), (-0.42, -1.7), (0.38, -1.7), (0.68, -0.3)]
    on_body.polygon([(x + a * half_w, y + b * h) for a, b in cabin], fill=255)
    canvas.paste(_surface(scene, rng, 0.46 * r), mask=body)
    draw = ImageDraw.Draw(canvas)
    for window in (
        [(-0.42, -0.4), (-0.3, -1.4), (-0.06, -1.4), (-0.06, -0.4)],
        [(0.06, -0.4), (0.06, -1.4), (0.28, -1.4), (0.46, -0.4)],
    ):
        draw.polygon([(x + a * half_w, y + b * h) for a, b in window], fill=_GLASS)
    wheel_color = _jittered(COLORS[scene["wheel_color"]], rng)
    for side in (-1, 1):
        wheel_x, wheel_y = x + side * 0.55 * half_w, y + 1.1 * h
        _disc(draw, wheel_x, wheel_y, 0.34 * r, wheel_color)
        _disc(draw, wheel_x, wheel_y, 0.11 * r, (230, 230, 230))


def _house(
    canvas: Image.Image, scene: Scene, rng: random.Random, x: float, y: float, r: float
) -> None:
    draw, q = ImageDraw.Draw(canvas), 0.88 * r
    wall = [x - q, y - 0.2 * q, x + q, y + 1.05 * q]
    draw.rectangle(wall, fill=_jittered(COLORS[scene["color"]], rng))
    roof = [(x - 1.22 * q, y - 0.2 * q), (x, y - 1.25 * q), (x + 1.22 * q, y - 0.2 * q)]
    draw.polygon(roof, fill=_jittered(COLORS[scene["roof_color"]], rng))
    door = [x - 0.7 * q, y + 0.2 * q, x - 0.1 * q, y + 1.05 * q]
    draw.rectangle(door, fill=_jittered(COLORS[scene["door_color"]], rng))
    draw.rectangle([x + 0.2 * q, y + 0.15 * q, x + 0.75 * q, y + 0.65 * q], fill=_GLASS)


def _shape(
    canvas: Image.Image, scene: Scene, rng: random.Random, x: float, y: float, r: float
) -> None:
    mask, draw = _mask()
    shape = scene["shape"]
    if shape == "circle":
        _disc(draw, x, y, r, 255)
    elif shape == "square":
        q = 0.88 * r
        draw.rectangle([x - q, y - q, x + q, y + q], fill=255)
    elif shape == "triangle":
        draw.polygon([(x, y - r), (x + 1.05 * r, y + 0.85 * r), (x - 1.05 * r, y + 0.85 * r)], 255)
    elif shape == "star":
        radii = [1.15 * r if i % 2 == 0 else 0.5 * r for i in range(10)]
        angles = [math.pi * (i / 5 - 0.5) for i in range(10)]
        points = [
            (x + q * math.cos(t), y + q * math.sin(t)) for q, t in zip(radii, angles, strict=True)
        ]
        draw.polygon(points, fill=255)
    else:
        t = np.linspace(0, 2 * math.pi, 48)
        across = 17 * np.sin(t) ** 3
        up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        draw.polygon(
            [(x + a * r / 16, y - b * r / 16) for a, b in zip(across, up, strict=True)], 255
        )
    canvas.paste(_surface(scene, rng, 0.6 * r), mask=mask)
