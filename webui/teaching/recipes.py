"""From what a person fills in to the trainer's options."""

import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

from transformers import CLIPTokenizer

from loldu.base.config import BaseModelConfig
from loldu.errors import LoLDUError
from trainer.options.preset import PRESETS

TOKENS = ("sks", "ohwx", "zwx", "olis", "bnha", "phol", "kprs", "dits", "dax", "wug")
"""All but the last two and zwx are one token of CLIP's vocabulary, and one of its rarest."""
_ORDER = ("fast", "paper", "best", "low_vram")
_VALIDATIONS = 10
_WORD = re.compile(r"[^\W_][\w'-]{0,39}")
_NAME = "pretrained_model_name_or_path"
_BASE_OPTIONS = frozenset(option.name for option in fields(BaseModelConfig))


@dataclass(frozen=True)
class Recipe:
    """A preset of the trainer.

    Attributes:
        name: what the trainer calls it.
        about: what it is for, in the words of its file.
        options: by name, without their tables.
    """

    name: str
    about: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Order:
    """What a person wants trained; the values of a recipe stand for what they left alone.

    Attributes:
        class_name: what kind of thing it is.
        token: the rare word that is to mean it.
        recipe: name of the preset.
        max_train_steps: optimizer steps.
        learning_rate: of the adapter.
        rank: diagonal entries a layer, or full.
        resolution: side in pixels.
        with_prior_preservation: train on class pictures too.
        train_text_encoder: train that too.
        random_flip: train on mirrored pictures too.
        seed: of all that is random.
        previews: further prompts to draw while it trains, with {token} and {class}.
        scored: measure the previews.
    """

    class_name: str
    token: str
    recipe: str
    max_train_steps: int
    learning_rate: float
    rank: int | Literal["full"]
    resolution: int
    with_prior_preservation: bool
    train_text_encoder: bool
    random_flip: bool
    seed: int
    previews: tuple[str, ...]
    scored: bool


def recipes(base: str) -> dict[str, Recipe]:
    """The presets that are made for a base; if none is, those for Stable Diffusion."""
    shipped = {path.stem: _read(path) for path in sorted(PRESETS.glob("*.toml"))}
    names = [name for name, recipe in shipped.items() if _is_for(recipe, base)]
    if not names:
        names = [name for name, recipe in shipped.items() if _is_of_the_hub(recipe)]
    names.sort(key=lambda name: _ORDER.index(name) if name in _ORDER else -1)
    return {name: shipped[name] for name in names}


def rare_tokens(base: str) -> tuple[str, ...]:
    """Rare words to choose from: those that are one token to the base, where that can be told."""
    folder = Path(base) / "tokenizer"
    if not folder.is_dir():
        return TOKENS
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    return tuple(t for t in TOKENS if len(tokenizer.tokenize(t)) == 1) or TOKENS


def suggested_token(base: str, used: Collection[str]) -> str:
    """A rare word that no other concept is called by, so that both can be in one prompt."""
    tokens = rare_tokens(base)
    return next((token for token in tokens if token not in used), tokens[0])


def options_for(
    order: Order, base: str, pictures: Path, class_pictures: Path, *, on_gpu: bool
) -> dict[str, Any]:
    """The trainer's options.

    Args:
        order: what is wanted.
        base: the model.
        pictures: folder of the concept's.
        class_pictures: folder in which those of the class are kept for later trainings.
        on_gpu: whether it trains on one; what a preset says of half precision is for GPUs.

    Raises:
        LoLDUError: a word cannot be used, or there is no such recipe.
    """
    recipe = _chosen(order, base)
    told = dict(recipe.options)
    if not _is_for(recipe, base):  # another base has neither its variants nor its VAE
        told = {name: told[name] for name in told if name not in _BASE_OPTIONS}
    words = {"token": checked_word(order.token, "rare word"), "class": checked_class(order)}
    concept = "{token} {class}".format(**words)
    asked = [f"a photo of a {concept}", *(_filled(prompt, words) for prompt in order.previews)]
    every = max(1, order.max_train_steps // _VALIDATIONS)
    options = told | {
        _NAME: base,
        "instance_data_dir": str(pictures),
        "instance_prompt": f"a photo of a {concept}",
        "token": words["token"],
        "resolution": order.resolution,
        "random_flip": order.random_flip,
        "center_crop": True,
        "max_train_steps": order.max_train_steps,
        "learning_rate": order.learning_rate,
        "rank": order.rank,
        "with_prior_preservation": order.with_prior_preservation,
        "class_data_dir": str(class_pictures),
        "train_text_encoder": order.train_text_encoder,
        "seed": order.seed,
        "validation_prompt": asked,
        "validation_steps": every,
        "validation_scores": order.scored,
        "validation_images": 1,
        "drift_prompt": [f"a photo of a {words['class']}"],
        "checkpointing_steps": every,
        "checkpoints_total_limit": None,
        "logging_steps": max(1, min(10, order.max_train_steps // 50)),
    }
    if not on_gpu:
        options["mixed_precision"] = "no"
    if order.with_prior_preservation and not told.get("class_prompt"):
        options["class_prompt"] = [f"a photo of a {words['class']}"]
    return {name: value for name, value in options.items() if value is not None}


def checked_word(word: str, what: str) -> str:
    """One word.

    Raises:
        LoLDUError: it is none.
    """
    word = word.strip()
    if not _WORD.fullmatch(word):
        raise LoLDUError(f"The {what} must be one word of letters and digits, such as sks.")
    return word


def checked_class(order: Order) -> str:
    """The class of an order, in a few words.

    Raises:
        LoLDUError: it is empty, or more than that.
    """
    words = order.class_name.split()
    if (
        not words
        or len(words) > 5
        or not all(re.fullmatch(r"[^\W_][\w'-]{0,39}", w) for w in words)
    ):
        raise LoLDUError("Say in a word or a few what kind of thing it is, such as dog or toy.")
    if order.token.strip() in words:
        raise LoLDUError("The rare word is part of the class: choose another rare word.")
    return " ".join(words)


def _chosen(order: Order, base: str) -> Recipe:
    known = recipes(base)
    if order.recipe not in known:
        raise LoLDUError(f"There is no preset {order.recipe}; choose {' or '.join(known)}.")
    return known[order.recipe]


def _filled(prompt: str, words: Mapping[str, str]) -> str:
    for name, word in words.items():
        prompt = prompt.replace(f"{{{name}}}", word)
    return prompt.strip()


def _read(path: Path) -> Recipe:
    text = path.read_text(encoding="utf-8")
    head = text.partition("\n\n")[0]
    about = " ".join(line.lstrip("# ") for line in head.splitlines())
    tables = tomllib.loads(text).values()
    return Recipe(path.stem, about, {name: table[name] for table in tables for name in table})


def _is_for(recipe: Recipe, base: str) -> bool:
    own = recipe.options[_NAME]
    return own == base or (Path(base).exists() and Path(own).resolve() == Path(base).resolve())


def _is_of_the_hub(recipe: Recipe) -> bool:
    return not recipe.options[_NAME].startswith(".")
