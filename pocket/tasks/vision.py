"""Image sets to transfer to: easy and fine-grained, at home and in a foreign style.

Each is drawn twice: for the tables, and with other pictures ("-tuning") for choosing learning rates
by. No picture is in two splits or two drawings.
"""

import itertools
import random
from collections.abc import Callable
from functools import cache, partial

from PIL import Image, ImageFilter, ImageOps

from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageColumn
from pocket.render import CANVAS_PX, SIZE_PX, draw_background, draw_thing, render
from pocket.tasks.creatures import random_creature, render_creature
from pocket.world import ATTRIBUTES, COLORS, Scene, color_behind, contrast, random_scene

Draw = Callable[[int, random.Random], Image.Image]
"""A picture of a class."""

_SHAPES = ATTRIBUTES["shape"]
_LOOKS: dict[str, Scene] = {
    **{
        f"{body} toy with {ears} ears": {"kind": "toy", "body": body, "ears": ears}
        for body in ATTRIBUTES["body"]
        for ears in ATTRIBUTES["ears"]
    },
    "car": {"kind": "car"},
    "house": {"kind": "house"},
    **{shape: {"kind": "shape", "shape": shape} for shape in _SHAPES},
}
_PAIRS = tuple(itertools.permutations(_SHAPES, 2))
_CREATURES = 20


def _thing(label: int, rng: random.Random) -> Image.Image:
    """Anything of the world that looks as the label says, as pre-training saw it."""
    look = list(_LOOKS.values())[label]
    while True:
        scene = random_scene(rng)
        if scene["kind"] == look["kind"]:
            return render(scene | look, rng)


def _sketch(label: int, rng: random.Random) -> Image.Image:
    """The outlines of a thing, in pencil."""
    grey = ImageOps.grayscale(_thing(label, rng))
    lines = ImageOps.autocontrast(grey.filter(ImageFilter.FIND_EDGES).crop((1, 1, 63, 63)))
    return ImageOps.invert(lines).resize((SIZE_PX, SIZE_PX)).convert("RGB")


def _pair(label: int, rng: random.Random) -> Image.Image:
    """Two shapes side by side: the label tells which is where."""
    background = rng.choice(ATTRIBUTES["background"])
    canvas = draw_background(background, rng)
    behind = color_behind(background)
    for shape, at in zip(_PAIRS[label], (0.28, 0.72), strict=True):
        color = rng.choice([c for c in COLORS if contrast(c, behind) > 150])
        accent = rng.choice([c for c in COLORS if contrast(c, color) > 150])
        pattern = rng.choice(ATTRIBUTES["pattern"])
        scene = {"kind": "shape", "shape": shape, "color": color}
        scene |= {"pattern": pattern, "accent": accent}
        x, y = at + rng.uniform(-0.05, 0.05), 0.5 + rng.uniform(-0.15, 0.15)
        size = rng.uniform(0.13, 0.19)
        draw_thing(canvas, scene, rng, x * CANVAS_PX, y * CANVAS_PX, size * CANVAS_PX)
    return canvas.resize((SIZE_PX, SIZE_PX), Image.Resampling.LANCZOS)


@cache
def _creatures() -> list:
    rng = random.Random(11)
    return [random_creature(rng) for _ in range(_CREATURES)]


def _creature(label: int, rng: random.Random) -> Image.Image:
    """One of twenty individuals of one species."""
    return render_creature(_creatures()[label], rng)


@cache
def _drawn(
    name: str, draw: Draw, classes: tuple[str, ...], train: int, test: int, drawing: int
) -> DatasetDict:
    features = Features({"image": ImageColumn(), "label": ClassLabel(names=list(classes))})
    splits = {}
    for split, rows in (("train", train), ("test", test)):
        rng = random.Random(f"{name} {split} {drawing}")
        labels = [row % len(classes) for row in range(rows)]
        rng.shuffle(labels)
        pictures = [draw(label, rng) for label in labels]
        splits[split] = Dataset.from_dict({"image": pictures, "label": labels}, features)
    return DatasetDict(splits)


_SETS: dict[str, tuple[Draw, tuple[str, ...], int, int]] = {
    "things": (_thing, tuple(_LOOKS), 320, 512),
    "sketches": (_sketch, tuple(_LOOKS), 320, 512),
    "pairs": (_pair, tuple(f"{left}, {right}" for left, right in _PAIRS), 400, 500),
    "creatures": (_creature, tuple(f"creature {i}" for i in range(_CREATURES)), 400, 500),
}

GENERATORS: dict[str, Callable[[], DatasetDict]] = {
    name + suffix: partial(_drawn, name, *given, drawing)
    for name, given in _SETS.items()
    for drawing, suffix in enumerate(("", "-tuning"))
}
"""By name, what draws a set: columns `image` and `label`, splits "train" and "test"."""
