"""Stable Diffusion with random weights: its U-Net, or all of it as a diffusers folder.

Random weights are enough, because time and memory follow from the shapes.
"""

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.harness import Dtype, UNetOptions
from loldu.adapter.targets import DIFFUSERS_ATTENTION

TEXT_TOKENS = 77


@dataclass(frozen=True)
class Size:
    """Widths and depths; everything else is as in v1.5.

    Attributes:
        resolution: Side of the pictures, in pixels; the VAE divides it by 8.
        unet: Widths of the U-Net's four stages.
        vae: Widths of the VAE's four stages.
        vae_layers: Residual blocks a stage of the VAE.
        text: Width of the text encoder.
        text_heads: Its attention heads.
        text_layers: Its depth.
        words: Its vocabulary.
    """

    resolution: int
    unet: tuple[int, int, int, int]
    vae: tuple[int, int, int, int]
    vae_layers: int
    text: int
    text_heads: int
    text_layers: int
    words: int


SIZES = {
    "sd15": Size(512, (320, 640, 1280, 1280), (128, 256, 512, 512), 2, 768, 12, 12, 49408),
    "smallest": Size(128, (32, 32, 32, 32), (32, 32, 32, 32), 1, 32, 4, 1, 128),
}


def random_unet(
    options: UNetOptions,
    *,
    sample_size: int = 64,
    dtype: Dtype = "float32",
    device: str | None = None,
) -> UNet2DConditionModel:
    """Return a frozen U-Net; the same options give the same weights."""
    torch.manual_seed(options.seed)
    with torch.device("meta" if device == "meta" else "cpu"):
        unet = UNet2DConditionModel(
            sample_size=sample_size,
            block_out_channels=options.block_out_channels,
            cross_attention_dim=options.cross_attention_dim,
        )
    unet.requires_grad_(False).eval()
    nn.Module.to(unet, device or options.device, getattr(torch, dtype))
    return unet


def random_inputs(unet: Any, latent_size: int, rows: int = 1) -> dict[str, Tensor]:  # noqa: ANN401
    """Return the inputs of a U-Net, on its device and in its dtype."""
    shapes = {
        "sample": (rows, 4, latent_size, latent_size),
        "encoder_hidden_states": (rows, TEXT_TOKENS, unet.config["cross_attention_dim"]),
    }
    drawn = {name: torch.randn(shape) for name, shape in shapes.items()}
    inputs = {name: tensor.to(unet.device, unet.dtype) for name, tensor in drawn.items()}
    return {**inputs, "timestep": torch.full((rows,), 500, device=unet.device)}


def projections(model: nn.Module) -> dict[str, nn.Linear]:
    """Return the attention projections of a model without adapter, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.endswith(DIFFUSERS_ATTENTION)
    }


def noise_scheduler() -> DDPMScheduler:
    """Return the noise scheduler of v1.5."""
    return DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        steps_offset=1,
    )


def build_parts(size: Size, tokenizer: CLIPTokenizer) -> dict[str, nn.Module]:
    """Return the U-Net, the VAE and the text encoder."""
    vae: dict[str, Any] = {  # its annotations are narrower than what it takes
        "block_out_channels": size.vae,
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "latent_channels": 4,
        "layers_per_block": size.vae_layers,
        "sample_size": size.resolution,
    }
    text: dict[str, Any] = {
        "vocab_size": size.words,
        "hidden_size": size.text,
        "intermediate_size": 4 * size.text,
        "num_hidden_layers": size.text_layers,
        "num_attention_heads": size.text_heads,
        "projection_dim": size.text,
        "max_position_embeddings": TEXT_TOKENS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    return {
        "unet": UNet2DConditionModel(
            block_out_channels=size.unet,
            cross_attention_dim=size.text,
            sample_size=size.resolution // 8,
        ),
        "vae": AutoencoderKL(**vae),
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
    }


def save_random_base(
    folder: Path, size: Size, *, seed: int, dtype: torch.dtype, device: str
) -> None:
    """Write a diffusers folder; the weights are drawn on the device."""
    torch.manual_seed(seed)
    tokenizer = letters_tokenizer()
    with torch.device(device):
        parts: dict[str, Any] = dict(build_parts(size, tokenizer))
    for part in parts.values():
        nn.Module.to(part, dtype)
    rest: dict[str, Any] = {
        "tokenizer": tokenizer,
        "scheduler": noise_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipeline = StableDiffusionPipeline(**parts, **rest, requires_safety_checker=False)
    pipeline.save_pretrained(folder)


def save_random_pictures(folder: Path, count: int, resolution: int, *, seed: int) -> None:
    """Write square pictures of exactly this resolution, so that no trainer has to resize them."""
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    for index, picture in enumerate(pixels):
        image = Image.fromarray(picture).resize((resolution, resolution))
        image.save(folder / f"{index}.jpg")


def letters_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer without merges: each letter is a token."""
    letters = string.ascii_lowercase + string.digits
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(tokens)},
        merges=[],
        model_max_length=TEXT_TOKENS,
    )
