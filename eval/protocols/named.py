"""Published protocols by name: the options that each of them sets."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeVar

from eval.config import CLIP, DINO
from loldu.errors import LoLDUError
from loldu.options import build, values_of

T = TypeVar("T")

_OURS: Mapping[str, Any] = {
    "pairs": "all",
    "aggregate": "macro",
    "clip_t_scale": None,
    "keep_token": False,
}
PROTOCOLS: Mapping[str, Mapping[str, Any]] = {
    "dreambooth": {**_OURS, "dino": DINO, "clip": CLIP, "seeds": (0, 1, 2, 3)},
    "customconcept": {**_OURS, "dino": DINO, "clip": CLIP, "clip_t_scale": 2.5},
    "dreambench++": {
        **_OURS,
        "dino": "timm:vit_small_patch8_224.dino",
        "clip": "openai/clip-vit-base-patch32",
        "pairs": "matched",
        "aggregate": "micro",
        "seeds": (0,),
    },
    "peft": {
        **_OURS,
        "dino": "facebook/dinov2-base",
        "pairs": "matched",
        "aggregate": "micro",
        "seeds": (0, 1, 2),
        "num_inference_steps": 20,
        "guidance_scale": 3.5,
    },
}
"""Options by protocol, read from the published code; `docs/eval.md` describes them."""


def with_protocol(config: T, chosen: Collection[str]) -> T:
    """Return the config with the options of its `--protocol`, if it has one.

    The options of `chosen` keep their values: other weights may be a copy of the same model.

    Args:
        config: Config of a command.
        chosen: Options that the command line or a preset gives.

    Raises:
        LoLDUError: If a chosen option scores in another way than the protocol.
    """
    values = values_of(config)
    name = values.get("protocol")
    if name is None:
        return config
    for option, value in PROTOCOLS[name].items():
        if option not in values:
            continue
        if option not in chosen:
            values[option] = value
        elif option in _OURS and values[option] != value:
            raise LoLDUError(
                f"--{option} {values[option]} contradicts --protocol {name}, which sets {value}; "
                "leave one of the two out."
            )
    return build(type(config), values)
