"""Image datasets: easy and fine-grained ones, in the world's style and in a foreign one.

Each is drawn twice: for the tables, and with other pictures ("-tuning") to choose learning rates.
No picture is in two splits or two drawings.
"""

import random
from collections.abc import Callable
from functools import cache, partial

from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageColumn
from PIL import Image, ImageFilter, ImageOps

from experiments.bases.tasks.proportions import CarModel, Creature, Proportions
from pocket.render import SIZE_PX, render
from pocket.world import ATTRIBUTES, Scene, random_scene

Draw = Callable[[int, random.Random], Image.Image]
"""Function that draws a picture of a class."""

_LOOKS: dict[str, Scene] = {
    "toy": {"kind": "toy"},
    "car": {"kind": "car"},
    "house": {"kind": "house"},
    **{shape: {"kind": "shape", "shape": shape} for shape in ATTRIBUTES["shape"]},
}
_INDIVIDUALS, _MAKES = 40, 20


def _thing(label: int, rng: random.Random) -> Image.Image:
    """Return a picture of a class in the style of pre-training."""
    look = list(_LOOKS.values())[label]
    return render(_of_kind(look["kind"], rng) | look, rng)


def _sketch(label: int, rng: random.Random) -> Image.Image:
    """Return the outlines of a thing, in pencil."""
    grey = ImageOps.grayscale(_thing(label, rng))
    lines = ImageOps.autocontrast(grey.filter(ImageFilter.FIND_EDGES).crop((1, 1, 63, 63)))
    return ImageOps.invert(lines).resize((SIZE_PX, SIZE_PX)).convert("RGB")


def _of_kind(kind: str, rng: random.Random) -> Scene:
    while (scene := random_scene(rng))["kind"] != kind:
        pass
    return scene


@cache
def _individuals(kind: type[Proportions], count: int, seed: int) -> list[Proportions]:
    rng = random.Random(seed)
    return [kind.at_random(rng) for _ in range(count)]


def _creature(label: int, rng: random.Random) -> Image.Image:
    """Return a picture of one of forty individuals of one species."""
    return _individuals(Creature, _INDIVIDUALS, 11)[label].render(rng)


def _car(label: int, rng: random.Random) -> Image.Image:
    """Return a picture of a car of one of twenty models."""
    return _individuals(CarModel, _MAKES, 12)[label].render(rng)


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
    "creatures": (_creature, tuple(f"creature {i}" for i in range(_INDIVIDUALS)), 400, 520),
    "cars": (_car, tuple(f"make {i}" for i in range(_MAKES)), 400, 500),
}

GENERATORS: dict[str, Callable[[], DatasetDict]] = {
    name + suffix: partial(_drawn, name, *given, drawing)
    for name, given in _SETS.items()
    for drawing, suffix in enumerate(("", "-tuning"))
}
"""Dataset -> function that draws it: columns `image` and `label`, splits "train" and "test"."""
