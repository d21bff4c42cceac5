"""What one adapted pipeline is measured by, beside the base it came from."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from diffusers import StableDiffusionPipeline
from PIL import Image

from eval.encoders.load import load_clip, load_dino
from eval.metrics.functional import clip_t, image_similarity
from loldu.base.draw import sample_images
from loldu.pictures.folder import list_images
from pocket.captions import full_caption, setting_phrase
from pocket.classifier import load_classifier, overall_agreement
from pocket.concepts import render_concept
from pocket.corpus import random_scenes
from pocket.judge import to_pixels
from pocket.world import CONCEPTS, Scene

BACKGROUNDS = ("meadow", "sand", "snow", "sea", "bricks", "night", "pink", "yellow")
SEEDS_EACH = 6
OTHER_PROMPTS = 48
LEAK_PICTURES = 24
ENCODERS = Path("pocket/encoders")

TUNING: dict[str, Scene] = {
    "tuning_toy": {
        "kind": "toy",
        "body": "tall",
        "color": "blue",
        "pattern": "dotted",
        "accent": "white",
        "ears": "pointy",
        "ear_color": "yellow",
        "feet_color": "red",
    },
    "tuning_car": {
        "kind": "car",
        "color": "green",
        "pattern": "striped",
        "accent": "black",
        "wheel_color": "pink",
    },
}
"""What learning rates are chosen on, so that the shipped concepts only judge them."""

LOOKS = CONCEPTS | TUNING


def pictures_of(name: str) -> Path:
    """The folder of a concept's pictures; those for tuning are rendered when they are wanted."""
    if name in CONCEPTS:
        return Path("datasets/concepts") / name
    folder = Path("runs/tuning") / name
    if not folder.exists():
        render_concept(name, TUNING[name], folder)
    return folder


@dataclass(frozen=True)
class Drawn:
    """The pictures that a pipeline is judged by."""

    concept: list[Image.Image]
    others: list[Image.Image]
    plain_class: list[Image.Image]

    def save(self, file: Path) -> None:
        """Keep the pixels in a .npz file."""
        file.parent.mkdir(parents=True, exist_ok=True)
        stacks = {k: np.stack([np.asarray(p) for p in v]) for k, v in vars(self).items()}
        np.savez(file, allow_pickle=False, **stacks)

    @classmethod
    def load(cls, file: Path) -> Self:
        """What `save` kept."""
        with np.load(file) as arrays:
            return cls(**{k: [Image.fromarray(a) for a in arrays[k]] for k in arrays.files})


class Judge:
    """Draws and scores for one concept; everything but the pipeline stays the same."""

    def __init__(self, name: str) -> None:
        """Load the encoders and the concept's true pictures."""
        self.name, self.concept, self.folder = name, LOOKS[name], pictures_of(name)
        self.clip, self.dino = load_clip(str(ENCODERS / "clip")), load_dino(str(ENCODERS / "dino"))
        self.classifier = load_classifier(ENCODERS / "attributes.safetensors")
        self.pictures = _open(self.folder)
        self.held_out = _open(self.folder / "held_out")
        self.others = random_scenes(seed=2_000_000, count=OTHER_PROMPTS)

    def prompts(self, token: str) -> list[str]:
        """The concept in every setting, `SEEDS_EACH` times."""
        thing = f"{token} {self.concept['kind']}".strip()
        settings = [setting_phrase(b) for b in BACKGROUNDS for _ in range(SEEDS_EACH)]
        return [f"a photo of a {thing} {setting}" for setting in settings]

    def draw(self, pipeline: StableDiffusionPipeline, token: str = "sks") -> Drawn:
        """All pictures, from seeds that do not depend on the pipeline."""

        def of(prompts: list[str], first_seed: int) -> list[Image.Image]:
            return sample_images(
                pipeline,
                prompts,
                range(first_seed, first_seed + len(prompts)),
                num_inference_steps=20,
                guidance_scale=3.0,
                batch_size=24,
                progress=False,
            )

        plain = [f"a photo of a {self.concept['kind']}"] * LEAK_PICTURES
        return Drawn(
            of(self.prompts(token), 1000),
            of([full_caption(scene) for scene in self.others], 2000),
            of(plain, 3000),
        )

    def measure(self, drawn: Drawn) -> dict[str, float]:
        """Likeness (dino, clip_i against the held-out pictures), obedience and damage.

        Returns:
            dino, clip_i, clip_t of the concept's pictures; `concept`, the share of its attributes
            found on them; `background`, how often the one asked for is drawn; `others`, the share
            of attributes of unrelated prompts that is drawn; `leak`, the share of the concept's
            attributes found when the class is asked for without the token.
        """
        asked = [{"background": b} for b in BACKGROUNDS for _ in range(SEEDS_EACH)]
        parts = {k: v for k, v in self.concept.items() if k != "kind"}
        read = self.classifier.read(to_pixels(drawn.concept))
        plain = self.classifier.read(to_pixels(drawn.plain_class))
        others = self.classifier.read(to_pixels(drawn.others))
        scores = self.likeness(drawn.concept) | {
            "clip_t": clip_t(
                self.clip.encode_images(drawn.concept), self.clip.encode_texts(self.prompts(""))
            ),
            "concept": overall_agreement(read, [parts] * len(read)),
            "background": overall_agreement(read, asked),
            "others": overall_agreement(others, self.others),
            "leak": overall_agreement(plain, [parts] * len(plain)),
        }
        return {name: round(value, 4) for name, value in scores.items()}

    def likeness(self, pictures: list[Image.Image]) -> dict[str, float]:
        """DINO and CLIP-I against the held-out pictures."""
        return {
            name: image_similarity(
                extractor.encode_images(pictures), extractor.encode_images(self.held_out)
            )
            for name, extractor in (("dino", self.dino), ("clip_i", self.clip))
        }

    def real(self) -> dict[str, float]:
        """The likeness of true pictures: the training pictures against the held-out ones."""
        return self.likeness(self.pictures)


def _open(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in list_images(folder)]
