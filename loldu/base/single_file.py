"""Read the header of a single-file checkpoint, and say what is wrong before loading it."""

# safetensors is not typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from loldu.errors import LoLDUError

UNET = "model.diffusion_model."
VAES = ("first_stage_model.", "vae.")
FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"
LATENT_CHANNELS = 4
_LORA = re.compile(r"(?:^|[._])(?:lora|hada|lokr)_")


def tensor_shapes(path: Path) -> dict[str, list[int]]:
    """Return the shape of every tensor of a .safetensors file, by name.

    Raises:
        LoLDUError: If the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            file: Any = opened
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise LoLDUError(
            f"{path} cannot be read: it is incomplete or not a .safetensors file; download it "
            "again."
        ) from error


def is_stable_diffusion(keys: Collection[str]) -> bool:
    """Tell whether tensors of these names are a Stable Diffusion 1.x or 2.x checkpoint."""
    return FIRST_LAYER in keys and not any(key.startswith("conditioner.") for key in keys)


def check_checkpoint(path: Path, text_encoders: Collection[str], *, has_vae: bool) -> None:
    """Refuse a file that is not a whole checkpoint of Stable Diffusion.

    Args:
        path: A .safetensors file.
        text_encoders: Beginnings of the names of each text encoder's tensors.
        has_vae: Whether the VAE comes from elsewhere.

    Raises:
        LoLDUError: If the file is something else, or lacks a part.
    """
    shapes = tensor_shapes(path)
    wanted = "give a checkpoint of Stable Diffusion with --pretrained_model_name_or_path"

    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in shapes)

    if {"delta", "fingerprint"} <= shapes.keys():
        raise LoLDUError(f"{path} is a concept, not a base; {wanted}.")
    if any(map(_LORA.search, shapes)):
        raise LoLDUError(f"{path} is a LoRA, not a base; {wanted}.")
    if not has(UNET) and has("encoder.", "decoder.", *VAES):
        raise LoLDUError(f"{path} is a VAE: give it with --vae; {wanted}.")
    if FIRST_LAYER not in shapes:
        raise LoLDUError(f"{path} contains no Stable Diffusion UNet; {wanted}.")
    refuse_more_channels(path, shapes[FIRST_LAYER][1], LATENT_CHANNELS)
    if not all(map(has, text_encoders)):
        lacking = "contains no text encoder" if len(text_encoders) == 1 else "lacks a text encoder"
        raise LoLDUError(f"{path} {lacking}; give a complete checkpoint.")
    if not has_vae and not has(*VAES):
        raise LoLDUError(f"{path} contains no VAE; give one with --vae.")


def refuse_more_channels(name: str | Path, channels: int, latent_channels: int) -> None:
    """Refuse a UNet that needs more input than the noisy latents.

    Raises:
        LoLDUError: If it does.
    """
    if channels != latent_channels:
        raise LoLDUError(
            f"The UNet of {name} takes {channels} channels, so it is for inpainting or editing; "
            "give the base for plain text to image."
        )
