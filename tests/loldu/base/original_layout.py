"""A Stable Diffusion 1.x or XL pipeline as one file, under the names of the original release."""

import re
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

Weights = dict[str, Tensor]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OUTSIDE = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
OPEN_CLIP = {
    "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.final_layer_norm.weight": "ln_final.weight",
    "text_model.final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
VAE = {
    r"down_blocks\.(\d+)\.resnets": r"down.\1.block",
    r"down_blocks\.(\d+)\.downsamplers\.0": r"down.\1.downsample",
    r"up_blocks\.(\d+)\.resnets": r"up.\1.block",
    r"up_blocks\.(\d+)\.upsamplers\.0": r"up.\1.upsample",
    r"mid_block\.resnets\.0": "mid.block_1",
    r"mid_block\.resnets\.1": "mid.block_2",
    r"mid_block\.attentions\.0\.": "mid.attn_1.",
    r"attn_1\.group_norm": "attn_1.norm",
    r"attn_1\.to_([qkv])": r"attn_1.\1",
    r"attn_1\.to_out\.0": "attn_1.proj_out",
    "conv_shortcut": "nin_shortcut",
    "conv_norm_out": "norm_out",
}


def save_single_file(pipeline: StableDiffusionPipeline, path: Path) -> Path:
    """Write a pipeline as one file, in the format that people share."""
    tensors = {
        **{f"model.diffusion_model.{k}": v for k, v in unet_weights(pipeline.unet).items()},
        **{f"first_stage_model.{k}": v for k, v in vae_weights(pipeline.vae).items()},
        **{
            f"cond_stage_model.transformer.text_model.{key}": value
            for key, value in pipeline.text_encoder.state_dict().items()
        },
        # Files of that time hold the embeddings' counter too.
        "cond_stage_model.transformer.text_model.embeddings.position_ids": torch.arange(16)[None],
    }
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def save_xl_file(pipeline: StableDiffusionXLPipeline, path: Path) -> Path:
    """Write a pipeline of SDXL as one file: the second text encoder is OpenCLIP's."""
    first = "conditioner.embedders.0.transformer.text_model."
    second = "conditioner.embedders.1.model."
    parts = {
        "model.diffusion_model.": unet_weights(pipeline.unet),
        "first_stage_model.": vae_weights(pipeline.vae),
        first: pipeline.text_encoder.state_dict(),
        second: open_clip_weights(pipeline.text_encoder_2),
    }
    tensors = {f"{p}{key}": value for p, part in parts.items() for key, value in part.items()}
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def open_clip_weights(text_encoder: nn.Module) -> Weights:
    """OpenCLIP has queries, keys and values in one matrix, and multiplies by the projection."""
    state = text_encoder.state_dict()
    weights = {theirs: state[ours] for ours, theirs in OPEN_CLIP.items()}
    weights["text_projection"] = state["text_projection.weight"].T
    weights["logit_scale"] = torch.zeros(())
    for index in range(text_encoder.config.num_hidden_layers):
        ours = f"text_model.encoder.layers.{index}"
        theirs = f"transformer.resblocks.{index}"
        for kind in ("weight", "bias"):
            rows = [state[f"{ours}.self_attn.{side}_proj.{kind}"] for side in "qkv"]
            weights[f"{theirs}.attn.in_proj_{kind}"] = torch.cat(rows)
            for name, original in OPEN_CLIP_LAYER.items():
                weights[f"{theirs}.{original}.{kind}"] = state[f"{ours}.{name}.{kind}"]
    return weights


def unet_weights(unet: nn.Module) -> Weights:
    blocks = unet.config["layers_per_block"] + 1
    return {_unet_name(key, blocks): value for key, value in unet.state_dict().items()}


def _unet_name(key: str, blocks: int) -> str:
    """Resnets, attentions and resamplers are counted in one row down, and in one up."""
    for ours, theirs in OUTSIDE.items():
        if key.startswith(f"{ours}."):
            return key.replace(ours, theirs, 1)
    place, kind, index, rest = re.fullmatch(
        r"(down_blocks\.\d+|mid_block|up_blocks\.\d+)\.(\w+)\.(\d+)\.(.+)", key
    ).groups()
    if kind == "resnets":
        name, tail = rest.split(".")
        rest = f"{RESNET[name]}.{tail}"
    if place == "mid_block":
        number = 1 if kind == "attentions" else 2 * int(index)
        return f"middle_block.{number}.{rest}"
    direction, block = place.split("_blocks.")
    if kind == "downsamplers":
        return f"input_blocks.{(int(block) + 1) * blocks}.0.{rest.replace('conv', 'op')}"
    if kind == "upsamplers":  # after the attention, in the only block that has both
        return f"output_blocks.{(int(block) + 1) * blocks - 1}.2.{rest}"
    row = int(block) * blocks + int(index) + (direction == "down")
    slot = 1 if kind == "attentions" else 0
    return f"{'in' if direction == 'down' else 'out'}put_blocks.{row}.{slot}.{rest}"


def vae_weights(vae: AutoencoderKL) -> Weights:
    """Its attention was made of convolutions, and its blocks up are counted from the end."""
    last = len(vae.config["up_block_types"]) - 1
    weights: Weights = {}
    for key, value in vae.state_dict().items():
        name = key
        for pattern, theirs in VAE.items():
            name = re.sub(pattern, theirs, name)
        name = re.sub(r"\.up\.(\d+)", lambda match: f".up.{last - int(match[1])}", name)
        is_projection = "attn_1" in name and value.ndim == 2
        weights[name] = value[:, :, None, None] if is_projection else value
    return weights
