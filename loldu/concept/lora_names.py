"""Names of layers in LoRA files with kohya's keys, which A1111, ComfyUI and diffusers read.

kohya's scripts train the UNet of Stable Diffusion 1.x and 2.x in diffusers' layout, and SDXL's in
that of its original release: `down_blocks.1.attentions.0` is `input_blocks.4.1` there.

Source: kohya-ss/sd-scripts, networks/lora.py and library/sdxl_original_unet.py.
"""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import re
from collections.abc import Mapping
from typing import Any

from torch import nn

PREFIXES: Mapping[str, str] = {"unet": "lora_unet", "text_encoder": "lora_te"}
"""Prefixes of the keys by component of a pipeline with one text encoder."""
XL_PREFIXES: Mapping[str, str] = {
    "unet": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}
"""Prefixes of the keys by component of SDXL's pipeline."""

_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
}
_PLACE = re.compile(r"(down_blocks|up_blocks|mid_block)(?:\.(\d+))?\.(\w+)\.(\d+)\.(.+)")


def prefixes_of(parts: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the prefixes of the keys by component, for a pipeline with these components."""
    return XL_PREFIXES if "text_encoder_2" in parts else PREFIXES


def kohya_key(prefix: str, component: str, layer: str, model: nn.Module) -> str:
    """Return the beginning of a layer's keys, before `.lora_up.weight`.

    Args:
        prefix: Prefix of the component.
        component: Name of the component.
        layer: Name of the layer in its model.
        model: The model, without the wrapper of PEFT.
    """
    name = layer_in_full(component, layer)
    config: Any = getattr(model, "config", None)
    rows = getattr(config, "layers_per_block", None)
    if getattr(config, "addition_embed_type", None) == "text_time" and isinstance(rows, int):
        name = original_name(layer, rows + 1)
    return f"{prefix}_{name}".replace(".", "_")


def layer_in_full(component: str, layer: str) -> str:
    """Return a layer's name with `text_model.`, which transformers 5 omits in CLIP."""
    is_short = component.startswith("text_encoder") and layer.startswith("encoder.layers.")
    return f"text_model.{layer}" if is_short else layer


def original_name(layer: str, rows: int) -> str:
    """Return the name of a UNet's layer in the layout of SDXL's original release.

    Resnets, attentions and resamplers are counted in one row down, and in one row up.

    Args:
        layer: The name in diffusers' layout.
        rows: Rows of a block: its resnets, and one more.
    """
    if layer in _OUTSIDE:
        return _OUTSIDE[layer]
    found = _PLACE.fullmatch(layer)
    if found is None:
        return layer
    place, block, kind, index, rest = found.groups()
    if kind == "resnets":
        rest = _RESNET.get(rest, rest)
    slot = int(kind == "attentions")
    if place == "mid_block":
        return f"middle_block.{1 if slot else 2 * int(index)}.{rest}"
    first = int(block) * rows
    if kind == "downsamplers":
        return f"input_blocks.{first + rows}.0.op"
    if kind == "upsamplers":  # after the attention, as in the blocks of SDXL that grow
        return f"output_blocks.{first + rows - 1}.2.conv"
    if place == "down_blocks":
        return f"input_blocks.{first + int(index) + 1}.{slot}.{rest}"
    return f"output_blocks.{first + int(index)}.{slot}.{rest}"
