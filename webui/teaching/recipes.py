"""The presets for a base, and the trainer's options from the form of the page."""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from loldu.base.config import BaseModelConfig
from loldu.base.families import FAMILIES
from loldu.base.open import check_base
from loldu.errors import LoLDUError
from loldu.options import options
from loldu.presets import Preset, shipped_presets
from trainer.options.preset import PRESETS

TOKENS = ("sks", "ohwx", "zwx", "olis", "bnha", "phol", "kprs", "dits", "dax", "wug")
"""All but zwx and the last two are one token each in CLIP's vocabulary, among its rarest."""
_VALIDATIONS = 10
_WORD = re.compile(r"[^\W_][\w'-]{0,39}")
_NAME = "pretrained_model_name_or_path"
_BASE_OPTIONS = options(BaseModelConfig)


@dataclass(frozen=True)
class Order:
    """A training request; the preset decides everything else.

    Attributes:
        class_name: Kind of thing, such as dog.
        token: Rare word for the concept.
        recipe: Name of the preset.
        previews: More prompts to draw during training, with {token} and {class}.
        options: Options of the trainer that the form has, by name.
    """

    class_name: str
    token: str
    recipe: str
    previews: tuple[str, ...]
    options: Mapping[str, Any]


def presets_for(base: str) -> dict[str, Preset]:
    """Return the presets that are made for a base, or else those for its family of bases."""
    shipped = shipped_presets(PRESETS)
    if own := {name: preset for name, preset in shipped.items() if _is_for(preset, base)}:
        return own
    families = _possible_families(base)
    return {
        name: preset
        for name, preset in shipped.items()
        if _is_of_the_hub(preset) and (preset.family or FAMILIES[0].name) in families
    }


def rare_tokens(base: str) -> tuple[str, ...]:
    """Return rare words to choose from; for a local base, those that are one token in it."""
    folder = Path(base) / "tokenizer"
    if not folder.is_dir():
        return TOKENS
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return tuple(t for t in TOKENS if len(tokenizer.tokenize(t)) == 1) or TOKENS


def suggested_token(base: str, used: Collection[str]) -> str:
    """Return a rare word that no other concept has, so that both can be in one prompt."""
    tokens = rare_tokens(base)
    return next((token for token in tokens if token not in used), tokens[0])


def options_for(
    order: Order, base: str, pictures: Path, class_pictures: Path, *, on_gpu: bool
) -> dict[str, Any]:
    """Return the trainer's options by name.

    Args:
        order: What is wanted.
        base: Base model.
        pictures: Folder of the concept's pictures.
        class_pictures: Folder that keeps class pictures for later trainings.
        on_gpu: It trains on a GPU; the half precision of a preset is for GPUs.

    Raises:
        LoLDUError: If a word cannot be used, or there is no such preset.
    """
    preset = _chosen(order, base)
    values = dict(preset.values)
    if not _is_for(preset, base):  # another base has neither its variants nor its VAE
        values = {name: values[name] for name in values if name not in _BASE_OPTIONS}
    words = {
        "token": checked_word(order.token, "rare word"),
        "class": checked_class(order.class_name, order.token),
    }
    concept = "{token} {class}".format(**words)
    asked = [f"a photo of a {concept}", *(_filled(prompt, words) for prompt in order.previews)]
    steps = order.options["max_train_steps"]
    every = max(1, steps // _VALIDATIONS)
    values |= {
        **order.options,
        _NAME: base,
        "instance_data_dir": str(pictures),
        "instance_prompt": f"a photo of a {concept}",
        "token": words["token"],
        "center_crop": True,
        "class_data_dir": str(class_pictures),
        "validation_prompt": asked,
        "validation_steps": every,
        "validation_images": 1,
        "drift_prompt": [f"a photo of a {words['class']}"],
        "checkpointing_steps": every,
        "checkpoints_total_limit": None,
        "logging_steps": max(1, min(10, steps // 50)),
    }
    if not on_gpu:
        values["mixed_precision"] = "no"
    if values["with_prior_preservation"] and not values.get("class_prompt"):
        values["class_prompt"] = [f"a photo of a {words['class']}"]
    return {name: value for name, value in values.items() if value is not None}


def checked_word(word: str, what: str) -> str:
    """Return a word without spaces around it.

    Raises:
        LoLDUError: If it is not one word.
    """
    word = word.strip()
    if not _WORD.fullmatch(word):
        raise LoLDUError(f"The {what} must be one word of letters and digits, such as sks.")
    return word


def checked_class(class_name: str, token: str) -> str:
    """Return a class, a word or a few, without more spaces than it needs.

    Raises:
        LoLDUError: If it is empty, longer than that, or contains the rare word.
    """
    words = class_name.split()
    if not 1 <= len(words) <= 5 or not all(map(_WORD.fullmatch, words)):
        raise LoLDUError("Say in one to five words what kind of thing it is, such as dog or toy.")
    if token.strip() in words:
        raise LoLDUError("The rare word is part of the class: choose another rare word.")
    return " ".join(words)


def _chosen(order: Order, base: str) -> Preset:
    known = presets_for(base)
    if order.recipe not in known:
        raise LoLDUError(f"There is no preset {order.recipe}; choose {' or '.join(known)}.")
    return known[order.recipe]


def _filled(prompt: str, words: Mapping[str, str]) -> str:
    for name, word in words.items():
        prompt = prompt.replace(f"{{{name}}}", word)
    return prompt.strip()


def _is_for(preset: Preset, base: str) -> bool:
    own = _base_of(preset)
    return own == base or (Path(base).exists() and Path(own).resolve() == Path(base).resolve())


def _possible_families(base: str) -> set[str]:
    """Return the families that a base may be of; only a local base says it without the network."""
    if not Path(base).exists():
        is_hub_id = base.count("/") == 1 and not base.startswith((".", "/", "~"))
        return {family.name for family in (FAMILIES if is_hub_id else FAMILIES[:1])}
    try:
        return {check_base(BaseModelConfig(base)).name}
    except LoLDUError:  # the page says so when it loads the base
        return {FAMILIES[0].name}


def _is_of_the_hub(preset: Preset) -> bool:
    own = _base_of(preset)
    return not own.startswith(".") and not Path(own).is_absolute()


def _base_of(preset: Preset) -> str:
    return preset.values.get(_NAME, _BASE_OPTIONS[_NAME].default)
