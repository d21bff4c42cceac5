"""Names of layers in LoRA files with kohya's keys, which A1111, ComfyUI and diffusers read.

kohya's scripts train the UNet of Stable Diffusion 1.x and 2.x in diffusers' layout, and SDXL's in
that of its original release: `down_blocks.1.attentions.0` is `input_blocks.4.1` there. FLUX.2 has
its original layout too, where queries, keys and values of an attention are one layer.

Source: kohya-ss/sd-scripts, networks/lora.py and library/sdxl_original_unet.py; black-forest-labs'
flux2, src/flux2/model.py.
"""

# torch is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loldu.errors import ConceptError

PREFIXES: Mapping[str, str] = {"unet": "lora_unet", "text_encoder": "lora_te"}
"""Prefixes of the keys by component of a pipeline with one text encoder."""
XL_PREFIXES: Mapping[str, str] = {
    "unet": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}
"""Prefixes of the keys by component of SDXL's pipeline."""
FLUX2_PREFIXES: Mapping[str, str] = {"transformer": "lora_unet"}
"""Prefix of the keys for the transformer of FLUX.2; readers call any network a UNet."""
FLUX2 = "Flux2Transformer2DModel"
"""The class of that transformer."""

_COMPONENT_OF_CLASS = {
    "UNet2DConditionModel": "unet",
    "CLIPTextModel": "text_encoder",
    "CLIPTextModelWithProjection": "text_encoder_2",
    FLUX2: "transformer",
}

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
_FLUX2_PLACE = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
_FLUX2_SINGLE = {"attn.to_qkv_mlp_proj": "linear1", "attn.to_out": "linear2"}
_FLUX2_DOUBLE = {
    "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj",
    "ff.linear_in": "img_mlp.0",
    "ff.linear_out": "img_mlp.2",
    "ff_context.linear_in": "txt_mlp.0",
    "ff_context.linear_out": "txt_mlp.2",
}
_FLUX2_JOINED = {
    **{f"attn.to_{name}": ("img_attn.qkv", part) for part, name in enumerate("qkv")},
    **{f"attn.add_{name}_proj": ("txt_attn.qkv", part) for part, name in enumerate("qkv")},
}
_FLUX2_OUTSIDE = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_guidance_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "proj_out": "final_layer.linear",
}


@dataclass(frozen=True)
class Place:
    """Where a LoRA file has the change of a layer.

    Attributes:
        key: Beginning of the keys, before `.lora_up.weight`.
        part: Number of the layer among those that the file joins.
        parts: How many layers of one size the file joins, whose outputs stand one after the other.
    """

    key: str
    part: int = 0
    parts: int = 1


def prefixes_of(parts: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the prefixes of the keys by component, for a pipeline with these components."""
    if type(parts.get("transformer")).__name__ == FLUX2:
        return FLUX2_PREFIXES
    return XL_PREFIXES if "text_encoder_2" in parts else PREFIXES


def component_of(model: nn.Module) -> str:
    """Return the component name of a model on its own.

    Raises:
        ConceptError: If it does not follow from the class of the model.
    """
    kind = type(model).__name__
    if kind not in _COMPONENT_OF_CLASS:
        raise ConceptError(
            f"a {kind} on its own has no place in a diffusers pipeline: pass the whole pipeline, "
            "or use layout='peft'"
        )
    return _COMPONENT_OF_CLASS[kind]


def place_of(prefix: str, component: str, layer: str, model: nn.Module) -> Place:
    """Return where a file with kohya's keys has the change of a layer.

    Args:
        prefix: Prefix of the component.
        component: Name of the component.
        layer: Name of the layer in its model.
        model: The model, without the wrapper of PEFT.

    Raises:
        ConceptError: If no program has a name for the layer.
    """
    if type(model).__name__ == FLUX2:
        name, part, parts = _place_in_flux2(layer)
        return Place(f"{prefix}_{name}".replace(".", "_"), part, parts)
    name = layer_in_full(component, layer)
    config: Any = getattr(model, "config", None)
    rows = getattr(config, "layers_per_block", None)
    if getattr(config, "addition_embed_type", None) == "text_time" and isinstance(rows, int):
        name = original_name(layer, rows + 1)
    return Place(f"{prefix}_{name}".replace(".", "_"))


def joined(
    factors: Mapping[int, tuple[Tensor, Tensor]], parts: int
) -> tuple[Float[Tensor, "out r ..."], Float[Tensor, "r in ..."]]:  # noqa: F821  a shape
    """Return up and down of the layer that a file has in place of several layers of one size.

    `up` has a block for each layer and is zero elsewhere, so the ranks add up. Layers without
    factors do not change.

    Args:
        factors: Up and down by the number of the layer.
        parts: How many layers the file joins.
    """
    if parts == 1:
        return factors[0]
    rank, at = sum(down.shape[0] for _, down in factors.values()), 0
    size = next(iter(factors.values()))[0].shape[0]
    whole = next(iter(factors.values()))[0].new_zeros(parts * size, rank)
    for part, (up, _) in sorted(factors.items()):
        whole[part * size : (part + 1) * size, at : at + up.shape[1]] = up
        at += up.shape[1]
    return whole, torch.cat([down for _, (_, down) in sorted(factors.items())])


def layer_in_full(component: str, layer: str) -> str:
    """Return a layer's name with `text_model.`, which transformers 5 omits in CLIP."""
    is_short = component.startswith("text_encoder") and layer.startswith("encoder.layers.")
    return f"text_model.{layer}" if is_short else layer


def _place_in_flux2(layer: str) -> tuple[str, int, int]:
    """Return the name in FLUX.2's original release, and the part and number of joined layers."""
    if layer in _FLUX2_OUTSIDE:
        return _FLUX2_OUTSIDE[layer], 0, 1
    if found := _FLUX2_PLACE.fullmatch(layer):
        single, block, rest = found.groups()
        if single and rest in _FLUX2_SINGLE:
            return f"single_blocks.{block}.{_FLUX2_SINGLE[rest]}", 0, 1
        if not single and rest in _FLUX2_DOUBLE:
            return f"double_blocks.{block}.{_FLUX2_DOUBLE[rest]}", 0, 1
        if not single and rest in _FLUX2_JOINED:
            name, part = _FLUX2_JOINED[rest]
            return f"double_blocks.{block}.{name}", part, 3
    raise ConceptError(
        f"'{layer}' has no name in a LoRA with kohya's keys: use layout='diffusers', or leave it "
        "out"
    )


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
