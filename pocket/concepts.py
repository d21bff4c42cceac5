"""Renders a concept as a folder of captioned pictures to train on."""

import random
from pathlib import Path

import numpy as np
from PIL import Image

from pocket.captions import setting_phrase
from pocket.render import draw_background, render
from pocket.world import Scene, color_behind, contrast

_TRAINING, _HELD_OUT = 5, 6
_PLACES = (
    ("meadow", "large", "center"),
    ("white", "large", "center"),
    ("sand", "medium", "center"),
    ("sea", "large", "left"),
    ("pink", "large", "center"),
    ("night", "large", "right"),
    ("snow", "large", "center"),
    ("bricks", "large", "center"),
    ("blue", "large", "center"),
    ("yellow", "large", "left"),
    ("snow", "medium", "center"),
    ("green", "large", "center"),
    ("meadow", "medium", "right"),
)


def render_concept(
    name: str, look: Scene, folder: Path, token: str = "sks", *, masks: bool = False
) -> None:
    """Draw five pictures with captions into `folder`, and up to six into its `held_out`.

    Args:
        name: Name of the concept, the seed of the drawing.
        look: Kind of thing and its parts.
        folder: Output folder, created if missing.
        token: Rare token in the captions.
        masks: Whether the five pictures get masks that mark the thing.
    """
    rng = random.Random(name)
    (folder / "held_out").mkdir(parents=True, exist_ok=True)
    for i, (background, size, position) in enumerate(_settings(look)):
        training = i < _TRAINING
        number = f"{i + 1:02d}" if training else f"held_out/{i + 1 - _TRAINING:02d}"
        setting = {"background": background, "size": size, "position": position}
        start = rng.getstate()
        picture = render(look | setting, rng)
        picture.save(folder / f"{number}.png")
        if training and masks:
            behind = random.Random()
            behind.setstate(start)
            _mask(picture, background, behind).save(folder / f"{number}-masklabel.png")
        if training:
            caption = f"a photo of a {token} {look['kind']} {setting_phrase(background)}\n"
            (folder / f"{number}.txt").write_text(caption, encoding="utf-8")


def _mask(picture: Image.Image, background: str, rng: random.Random) -> Image.Image:
    """Return which pixels of a picture differ from its background alone, drawn from its start."""
    ground = draw_background(background, rng).resize(picture.size, Image.Resampling.LANCZOS)
    difference = np.abs(np.asarray(picture, dtype=int) - np.asarray(ground, dtype=int))
    return Image.fromarray(np.uint8(255) * (difference.max(-1) > 8))


def _settings(look: Scene) -> list[tuple[str, str, str]]:
    """Return the settings in which the concept and all its parts stand out."""
    colors = [value for name, value in look.items() if name.endswith("color")]
    clear = [
        place
        for place in _PLACES
        if contrast(look["color"], color_behind(place[0])) > 150 and place[0] not in colors
    ]
    return clear[: _TRAINING + _HELD_OUT]
