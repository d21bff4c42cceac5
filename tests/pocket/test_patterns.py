"""The counter of dots and stripes: against pictures of a known number, and true renders."""

import random

import pytest
from PIL import Image, ImageDraw, ImageFilter

from pocket.patterns import count, counted_right
from pocket.render import render
from pocket.world import COLORS, Scene, random_scene

SCENE: Scene = {
    "kind": "shape",
    "shape": "square",
    "color": "blue",
    "accent": "yellow",
    "background": "yellow",  # the color of the accent, so that only the outline ends it
    "size": "large",
    "position": "center",
}


def drawn(pattern: str, number: int) -> Image.Image:
    """Draw dots or stripes at four times the size and reduce the picture."""
    canvas = Image.new("RGB", (256, 256), COLORS[SCENE["background"]])
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((40, 40, 216, 216), fill=COLORS["blue"])
    for i in range(number):
        if pattern == "dotted":
            x, y = 70 + 56 * (i % 3), 64 + 42 * (i // 3)
            pen.ellipse((x - 14, y - 14, x + 14, y + 14), fill=COLORS["yellow"])
        else:
            pen.rectangle((40, 56 + 34 * i, 216, 70 + 34 * i), fill=COLORS["yellow"])
    return canvas.resize((64, 64), Image.Resampling.LANCZOS)


@pytest.mark.parametrize("number", range(13))
def test_dots_are_counted(number: int) -> None:
    assert count(drawn("dotted", number), SCENE | {"pattern": "dotted"}) == number


@pytest.mark.parametrize("number", range(5))
def test_stripes_are_counted(number: int) -> None:
    assert count(drawn("striped", number), SCENE | {"pattern": "striped"}) == number


def test_dots_that_run_together_are_no_dots() -> None:
    canvas = drawn("dotted", 12)
    ImageDraw.Draw(canvas).rectangle((14, 14, 49, 18), fill=COLORS["yellow"])
    assert count(canvas, SCENE | {"pattern": "dotted"}) == 9


def test_true_renders_are_counted_right_and_others_are_not() -> None:
    scenes = [random_scene(random.Random(seed)) for seed in range(150)]
    scenes = [scene for scene in scenes if scene.get("pattern", "plain") != "plain"]
    true = [render(scene, random.Random(900 + i)) for i, scene in enumerate(scenes)]
    third = scenes[::3]  # counting takes most of the time
    blurred = [picture.filter(ImageFilter.GaussianBlur(0.5)) for picture in true[::3]]
    plain = [
        render(scene | {"pattern": "plain"}, random.Random(i)) for i, scene in enumerate(third)
    ]
    other = {"dotted": "striped", "striped": "dotted"}
    swapped = [
        render(scene | {"pattern": other[scene["pattern"]]}, random.Random(i))
        for i, scene in enumerate(third)
    ]
    for pattern in other:
        assert counted_right(true, scenes)[pattern] > 0.9
        assert counted_right(blurred, third)[pattern] > 0.85
        assert counted_right(plain, third)[pattern] < 0.3
        assert counted_right(swapped, third)[pattern] < 0.5
