"""Builds what the project ships: ``python -m pocket pretrain | concepts``."""

import logging
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from pocket.captions import setting_phrase
from pocket.pretrain import Recipe, pretrain
from pocket.render import render
from pocket.world import CONCEPTS, color_behind, concept_scene, contrast

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Pretrain:
    """Render the world and train every part of the base; stop and start it as you like.

    Attributes:
        output: Where `base` and `encoders` are written.
        build: Work files, 2 GB: the corpus, checkpoints, logs.
        recipe: How much of everything.
    """

    output: Path = _HERE
    build: Path = Path.home() / ".cache" / "loldu" / "pocket"
    recipe: tyro.conf.OmitArgPrefixes[Recipe] = field(default_factory=Recipe)

    def run(self) -> None:
        """Runs the command."""
        pretrain(self.output, self.build, self.recipe)


@dataclass(frozen=True)
class Concepts:
    """Render the concepts that training never saw: five pictures and up to six held-out ones each.

    Attributes:
        output: Where a folder a concept is written.
        token: The rare token of the captions.
    """

    output: Path = _HERE.parent / "datasets" / "concepts"
    token: str = "sks"

    def run(self) -> None:
        """Runs the command."""
        for name, concept in CONCEPTS.items():
            rng = random.Random(name)
            folder = self.output / name
            (folder / "held_out").mkdir(parents=True, exist_ok=True)
            for i, (background, size, position) in enumerate(_settings(concept)):
                training = i < _TRAINING
                number = f"{i + 1:02d}" if training else f"held_out/{i + 1 - _TRAINING:02d}"
                picture = render(concept_scene(name, background, size, position), rng)
                picture.save(folder / f"{number}.png")
                if training:
                    where = setting_phrase(background)
                    caption = f"a photo of a {self.token} {concept['kind']} {where}\n"
                    (folder / f"{number}.txt").write_text(caption)


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


def _settings(concept: dict[str, str]) -> list[tuple[str, str, str]]:
    """The settings before which the concept stands out, and no part of it vanishes."""
    colors = [value for name, value in concept.items() if name.endswith("color")]
    clear = [
        place
        for place in _PLACES
        if contrast(concept["color"], color_behind(place[0])) > 150 and place[0] not in colors
    ]
    return clear[: _TRAINING + _HELD_OUT]


def main() -> None:
    """Entry point."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = (
        Annotated[Pretrain, tyro.conf.subcommand("pretrain")]
        | Annotated[Concepts, tyro.conf.subcommand("concepts")]
    )
    tyro.cli(commands, prog="python -m pocket").run()  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
