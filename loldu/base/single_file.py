"""A single-file checkpoint: what is in it, told from its header before anything is loaded."""

import re
from pathlib import Path

from safetensors import SafetensorError, safe_open

from loldu.errors import LoLDUError

UNET, TEXT_ENCODER = "model.diffusion_model.", "cond_stage_model."
VAES = ("first_stage_model.", "vae.")
FIRST_LAYER = f"{UNET}input_blocks.0.0.weight"
LATENT_CHANNELS = 4
_LORA = re.compile(r"(?:^|[._])(?:lora|hada|lokr)_")


def check_checkpoint(path: Path, *, has_vae: bool) -> None:
    """Refuse a file that is no Stable Diffusion 1.x or 2.x checkpoint of the original layout.

    Args:
        path: a .safetensors file.
        has_vae: whether a VAE comes from elsewhere.

    Raises:
        LoLDUError: saying what it is instead, or which part of a checkpoint it lacks.
    """
    shapes = _shapes(path)
    wanted = "give a Stable Diffusion 1.x or 2.x checkpoint with --pretrained_model_name_or_path"

    def has(*prefixes: str) -> bool:
        return any(key.startswith(prefixes) for key in shapes)

    if any(map(_LORA.search, shapes)):
        raise LoLDUError(f"{path} is a LoRA, which is no base; {wanted}.")
    if not has(UNET) and has("encoder.", "decoder.", *VAES):
        raise LoLDUError(f"{path} is a VAE, which goes to --vae; {wanted}.")
    if has("conditioner."):
        raise LoLDUError(f"{path} is an SDXL checkpoint; {wanted}.")
    if FIRST_LAYER not in shapes:
        raise LoLDUError(f"{path} has no Stable Diffusion UNet in it; {wanted}.")
    refuse_more_channels(path, shapes[FIRST_LAYER][1], LATENT_CHANNELS)
    if not has(TEXT_ENCODER):
        raise LoLDUError(f"{path} has no text encoder in it; give a checkpoint that is whole.")
    if not has_vae and not has(*VAES):
        raise LoLDUError(f"{path} has no VAE in it; give one with --vae.")


def refuse_more_channels(name: str | Path, channels: int, latent_channels: int) -> None:
    """Refuse a UNet that wants more than the noisy latents.

    Raises:
        LoLDUError: it does.
    """
    if channels != latent_channels:
        raise LoLDUError(
            f"The UNet of {name} takes {channels} channels, so it is for inpainting or editing; "
            "give the base for plain text to image."
        )


def _shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118  no mapping
    except SafetensorError as error:
        raise LoLDUError(
            f"{path} cannot be read: it is cut short or no .safetensors file; download it again."
        ) from error
