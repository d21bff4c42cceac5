"""Load encoders: a kind of weights is a line of `KINDS`, an encoder a line of `ENCODERS`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from pathlib import Path
from pickle import UnpicklingError

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from safetensors import SafetensorError

from eval.config import CLIP, DINO, ModelsConfig
from eval.encoders.encoder import Encoder, PatchGrid, TextEncoder, Thumbnail, TokenEncoder
from eval.metrics.copying import SIDE_PX
from loldu.errors import LoLDUError

KINDS = {
    "--clip": {
        "": "eval.encoders.from_transformers:TransformersClip",
        "open_clip": "eval.encoders.from_open_clip:OpenClip",
    },
    "--dino": {
        "": "eval.encoders.from_transformers:TransformersDino",
        "timm": "eval.encoders.from_timm:TimmDino",
    },
}
"""Encoder classes by flag and by the prefix before the colon; imported on use, for not every
library is installed."""

NAMES = {
    "--clip": {
        "clip-b": CLIP,
        "clip-l": "open_clip:ViT-L-14-quickgelu/openai",
        "siglip2": "google/siglip2-base-patch16-224",
    },
    "--dino": {
        "dino": DINO,
        "dinov2": "facebook/dinov2-base",
        "dinov3": "facebook/dinov3-vitb16-pretrain-lvd1689m",
    },
}
"""Short names of published models, by flag; a folder of that name wins."""

ENCODERS: dict[str, Callable[[ModelsConfig, torch.device | str], Encoder]] = {
    "dino": lambda models, device: load_dino(models.dino, device),
    "clip": lambda models, device: load_clip(models.clip, device),
    "thumbnail": lambda models, device: Thumbnail(SIDE_PX, device),
}
"""How each encoder that metrics name is loaded."""


PATCHES = "dino_patches"
"""Encoder of DINO's patches, which shares the network of `dino`."""


def load_encoders(
    names: Iterable[str], models: ModelsConfig, device: torch.device | str
) -> dict[str, Encoder]:
    """Load encoders by their names in `ENCODERS`.

    Raises:
        LoLDUError: If the weights of one are missing.
    """
    found: dict[str, Encoder] = {}
    for name in sorted(dict.fromkeys(names), key=lambda name: name == PATCHES):  # after DINO
        if name == PATCHES:
            source = found.get("dino") or ENCODERS["dino"](models, device)
            assert isinstance(source, TokenEncoder)
            found[name] = PatchGrid(source)
        else:
            found[name] = ENCODERS[name](models, device)
    return found


def load_clip(name_or_path: str, device: torch.device | str = "cpu") -> TextEncoder:
    """Load CLIP: a transformers folder or hub id, or ``open_clip:architecture/pretrained``.

    Raises:
        LoLDUError: If the weights are missing; the message says how to get them.
    """
    encoder = _load("--clip", name_or_path, device)
    assert isinstance(encoder, TextEncoder)
    return encoder


def load_dino(name_or_path: str, device: torch.device | str = "cpu") -> Encoder:
    """Load DINO: ``timm:architecture.tag``, or a transformers folder or hub id.

    Raises:
        LoLDUError: If the weights are missing; the message says how to get them.
    """
    return _load("--dino", name_or_path, device)


def _load(flag: str, asked: str, device: torch.device | str) -> Encoder:
    """Load an encoder, and turn the many ways to lack weights into one sentence."""
    if not Path(asked).exists():
        asked = NAMES[flag].get(asked, asked)
    kind, _, name = asked.partition(":")
    if kind not in KINDS[flag]:
        if name and not Path(asked).exists():
            prefixes = " or ".join(f"{prefix}:NAME" for prefix in KINDS[flag] if prefix)
            raise LoLDUError(
                f"{flag} {asked} is of an unknown kind: give {prefixes}, or a transformers folder "
                "or hub id."
            )
        kind, name = "", asked
    try:
        module, _, class_name = KINDS[flag][kind].partition(":")
        return getattr(import_module(module), class_name)(name, device)
    except ModuleNotFoundError as error:
        raise LoLDUError(
            f"{flag} {asked} needs the package {error.name}: pip install 'loldu[eval]', or pass "
            f"{flag} a folder with a transformers model."
        ) from error
    # ValueError, AttributeError, KeyError: the folder or architecture is of another network.
    except (
        *(OSError, RuntimeError, ValueError, AttributeError, KeyError),
        *(SafetensorError, UnpicklingError, EOFError),
    ) as error:
        if Path(asked).is_dir():
            raise LoLDUError(
                f"{flag} {asked} has no usable weights: the folder needs a complete transformers "
                "model of this kind, with preprocessor_config.json and, for --clip, the tokenizer."
            ) from error
        raise LoLDUError(
            f"{flag} {asked} has no usable weights here: {_cure(flag, asked)}"
        ) from error


def _cure(flag: str, asked: str) -> str:
    """Say where to get the weights and where to put them."""
    kind, _, name = asked.partition(":")
    architecture = name.partition("/")[0].partition(".")[0]
    if kind == "timm":
        page = f"huggingface.co/timm/{name.partition('/')[0]}"
        place = f"{flag} timm:{architecture}/PATH"
    elif kind == "open_clip":
        page, place = "the page open_clip names", f"{flag} open_clip:{name.partition('/')[0]}/PATH"
        if name == "ViT-B-32-quickgelu/openai":
            page = "huggingface.co/timm/vit_base_patch32_clip_224.openai"
    else:
        page, place = f"huggingface.co/{asked}", f"{flag} FOLDER, with config.json beside it"
        if Path(asked).is_absolute() or asked.startswith("."):
            page = "its source"
    return (
        f"run once with a network, which downloads them to {HF_HUB_CACHE}, or fetch the weights "
        f"from {page} and give {place}."
    )
