"""The judge of a concept of the embedded world: draws pictures and scores them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from diffusers import DiffusionPipeline
from PIL import Image

from eval.encoders.load import load_clip, load_dino
from eval.metrics.functional import clip_t, image_similarity
from loldu.base.draw import sample_images
from loldu.pictures.folder import list_images
from loldu.pictures.open import load_image
from loldu.presets import installed_path
from pocket.captions import full_caption, setting_phrase
from pocket.classifier import load_classifier, overall_agreement
from pocket.concepts import render_concept
from pocket.corpus import random_scenes
from pocket.judge import to_pixels
from pocket.world import (
    CONCEPTS,
    NEIGHBOR,
    TUNING,
    Scene,
    beside,
    elsewhere,
    other_thing,
    side_by_side,
)

BACKGROUNDS = ("meadow", "sand", "snow", "sea", "bricks", "night", "pink", "yellow")
SEEDS_EACH = 6
OTHER_PROMPTS = 48
LEAK_PICTURES = 24
BESIDE_PICTURES = 24
PAIR_PICTURES = 24
PARTNER_TOKEN = "zwx"
ENCODERS = Path(installed_path("pocket/encoders"))

LOOKS = CONCEPTS | TUNING

_PAIRS = (
    ("dotted_rabbit", "beetle_car"),
    ("striped_cat", "candy_house"),
    ("tall_bear", "night_imp"),
    ("tuning_toy", "tuning_car"),
)
PARTNERS = dict([*_PAIRS, *((two, one) for one, two in _PAIRS)])
"""The concept that is drawn beside each concept; both stand out on several backgrounds."""


def pictures_of(name: str) -> Path:
    """Return the folder of a concept's pictures; render those for tuning first."""
    if name in CONCEPTS:
        return Path(installed_path(f"datasets/concepts/{name}"))
    folder = Path("runs/tuning") / name
    if not folder.exists():
        render_concept(name, TUNING[name], folder)
    return folder


@dataclass(frozen=True)
class Drawn:
    """Pictures of the concept, of unrelated prompts, of the plain class, and of two things."""

    concept: list[Image.Image]
    others: list[Image.Image]
    plain_class: list[Image.Image]
    beside: list[Image.Image] = field(default_factory=list[Image.Image])


class Judge:
    """Draws and scores one concept; only the pipeline changes between calls."""

    def __init__(self, name: str) -> None:
        """Load the encoders and the concept's true pictures."""
        self.name, self.concept, self.folder = name, LOOKS[name], pictures_of(name)
        self.clip, self.dino = load_clip(str(ENCODERS / "clip")), load_dino(str(ENCODERS / "dino"))
        self.classifier = load_classifier(ENCODERS / "attributes.safetensors")
        self.pictures = _open(self.folder)
        self.held_out = _open(self.folder / "held_out")
        self.others = random_scenes(seed=2_000_000, count=OTHER_PROMPTS)
        rng, sides = random.Random(4_000_000), NEIGHBOR["side"]
        self.beside = [
            beside(elsewhere(self.concept, rng), sides[index % 2], rng)
            for index in range(BESIDE_PICTURES)
        ]
        self.partner = PARTNERS[name]
        other, rng = LOOKS[self.partner], random.Random(5_000_000)
        self.pairs = [
            side_by_side(elsewhere(self.concept, rng, other), sides[index % 2], other)
            for index in range(PAIR_PICTURES)
        ]

    @property
    def reads_two(self) -> bool:
        """Whether the classifier reads the second thing of a picture."""
        return "other_kind" in self.classifier.heads

    def prompts(self, token: str) -> list[str]:
        """Return prompts for the concept in every setting, `SEEDS_EACH` times."""
        thing = f"{token} {self.concept['kind']}".strip()
        settings = [setting_phrase(b) for b in BACKGROUNDS for _ in range(SEEDS_EACH)]
        return [f"a photo of a {thing} {setting}" for setting in settings]

    def draw(self, pipeline: DiffusionPipeline, token: str = "sks") -> Drawn:
        """Draw all pictures, with seeds that do not depend on the pipeline."""
        plain = [f"a photo of a {self.concept['kind']}"] * LEAK_PICTURES
        return Drawn(
            self.draw_concept(pipeline, token),
            _drawn(pipeline, [full_caption(scene) for scene in self.others], 2000),
            _drawn(pipeline, plain, 3000),
            self.draw_beside(pipeline, token),
        )

    def draw_concept(self, pipeline: DiffusionPipeline, token: str = "sks") -> list[Image.Image]:
        """Draw the pictures of the concept alone."""
        return _drawn(pipeline, self.prompts(token), 1000)

    def draw_beside(self, pipeline: DiffusionPipeline, token: str = "sks") -> list[Image.Image]:
        """Draw the concept beside another thing; none if the classifier reads one thing only."""
        named = [{**scene, "name": token} for scene in self.beside]
        return self._draw_two(pipeline, named, 4000)

    def draw_pairs(self, pipeline: DiffusionPipeline, token: str = "sks") -> list[Image.Image]:
        """Draw the concept beside its partner, each by its token; none as in `draw_beside`."""
        names = {"name": token, "other_name": PARTNER_TOKEN}
        return self._draw_two(pipeline, [{**scene, **names} for scene in self.pairs], 5000)

    def _draw_two(
        self, pipeline: DiffusionPipeline, scenes: Sequence[Scene], first_seed: int
    ) -> list[Image.Image]:
        if not self.reads_two:
            return []
        return _drawn(pipeline, [full_caption(scene) for scene in scenes], first_seed)

    def measure_beside(self, pictures: Sequence[Image.Image]) -> dict[str, float]:
        """Score pictures of the concept beside another thing, the one on the left read first.

        Returns:
            beside: share of the concept's attributes, on its side. neighbor: share of those of the
            other thing, which the prompt names. Nothing without pictures.
        """
        return self._measure_two(pictures, self.beside, ("beside", "neighbor"))

    def measure_pairs(self, pictures: Sequence[Image.Image]) -> dict[str, float]:
        """Score pictures of the concept beside its partner.

        Returns:
            pair: share of the concept's attributes, on its side. partner: share of the partner's.
            Nothing without pictures.
        """
        # The prompt names the kind of both.
        scenes = [{n: v for n, v in scene.items() if n != "other_kind"} for scene in self.pairs]
        return self._measure_two(pictures, scenes, ("pair", "partner"))

    def _measure_two(
        self, pictures: Sequence[Image.Image], scenes: Sequence[Scene], names: tuple[str, str]
    ) -> dict[str, float]:
        """Return the shares of the attributes of the concept, and of the second things."""
        if not pictures:
            return {}
        read = self.classifier.read(to_pixels(pictures))
        first: list[Scene] = []
        second: list[Scene] = []
        for scene in scenes:
            ours, theirs = ("", "other_") if scene["side"] == "right" else ("other_", "")
            first.append({ours + name: value for name, value in self._parts.items()})
            second.append({theirs + name: v for name, v in other_thing(scene).items()})
        shares = overall_agreement(read, first), overall_agreement(read, second)
        return dict(zip(names, shares, strict=True))

    def measure(
        self,
        drawn: Drawn,
        prompts: Sequence[str] | None = None,
        backgrounds: Sequence[str] | None = None,
        scenes: Sequence[Scene] | None = None,
    ) -> dict[str, float]:
        """Score pictures for likeness, for obedience to prompts, and for damage.

        Args:
            drawn: The pictures.
            prompts: Prompts of the concept's pictures; by default those of `draw`, without token.
            backgrounds: Backgrounds that they ask for; by default those of `draw`.
            scenes: Scenes of the unrelated prompts; by default those of `draw`.

        Returns:
            The scores of `measure_concept` and `measure_beside`. others: share of attributes of
            unrelated prompts on their pictures. leak: share of the concept's attributes on pictures
            of its plain class.
        """
        others, plain = (
            self.classifier.read(to_pixels(pictures))
            for pictures in (drawn.others, drawn.plain_class)
        )
        return {
            **self.measure_concept(drawn.concept, prompts, backgrounds),
            "others": overall_agreement(others, scenes or self.others),
            "leak": overall_agreement(plain, [self._parts] * len(plain)),
            **self.measure_beside(drawn.beside),
        }

    def measure_concept(
        self,
        pictures: list[Image.Image],
        prompts: Sequence[str] | None = None,
        backgrounds: Sequence[str] | None = None,
    ) -> dict[str, float]:
        """Score pictures of the concept for likeness and for obedience to prompts.

        Args:
            pictures: The pictures.
            prompts: Their prompts; by default those of `draw`, without token.
            backgrounds: Backgrounds that they ask for; by default those of `draw`.

        Returns:
            dino and clip_i: similarity to the held-out pictures. clip_t: similarity to the prompt.
            concept: share of the concept's attributes. background: share of pictures with the
            requested background.
        """
        texts = self.clip.encode_texts(prompts or self.prompts(""))
        asked = backgrounds or [b for b in BACKGROUNDS for _ in range(SEEDS_EACH)]
        read = self.classifier.read(to_pixels(pictures))
        return self.likeness(pictures) | {
            "clip_t": clip_t(self.clip.encode_images(pictures), texts),
            "concept": overall_agreement(read, [self._parts] * len(read)),
            "background": overall_agreement(read, [{"background": name} for name in asked]),
        }

    @property
    def _parts(self) -> Scene:
        return {name: value for name, value in self.concept.items() if name != "kind"}

    def likeness(self, pictures: list[Image.Image]) -> dict[str, float]:
        """Return DINO and CLIP-I against the held-out pictures."""
        return {
            name: image_similarity(
                extractor.encode_images(pictures), extractor.encode_images(self.held_out)
            )
            for name, extractor in (("dino", self.dino), ("clip_i", self.clip))
        }


@cache
def judge_of(name: str) -> Judge:
    """Return the judge of a concept, loaded once a process."""
    return Judge(name)


def _drawn(
    pipeline: DiffusionPipeline, prompts: Sequence[str], first_seed: int
) -> list[Image.Image]:
    return sample_images(
        pipeline,
        prompts,
        range(first_seed, first_seed + len(prompts)),
        num_inference_steps=20,
        guidance_scale=3.0,
        batch_size=24,
        progress=False,
    )


def _open(folder: Path) -> list[Image.Image]:
    return [load_image(path) for path in list_images(folder)]
