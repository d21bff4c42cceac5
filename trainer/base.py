"""The frozen base: a Stable Diffusion pipeline from a folder, the hub or a single file."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from torch import nn
from transformers.utils import logging as transformers_logging

from trainer.errors import TrainerError


def load_pipeline(
    pretrained_model_name_or_path: str,
    *,
    torch_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    vae: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline without a safety checker, frozen, in evaluation mode.

    The noise scheduler and its prediction type are the base's own. UNet and text encoder are in
    `torch_dtype`; the VAE is always fp32, for in fp16 some overflow while encoding.

    Args:
        pretrained_model_name_or_path: a diffusers folder, a hub id or a `.safetensors` file.
        torch_dtype: of UNet and text encoder.
        device: where all parts go.
        vae: folder or hub id of a VAE to take instead.
        revision: of a hub id.
        variant: of the weight files, such as `fp16`.

    Raises:
        TrainerError: when there is no such base or it cannot be reached or read.
    """
    name = pretrained_model_name_or_path
    _check_source(name, "--pretrained_model_name_or_path", "model_index.json")
    if vae is not None:
        _check_source(vae, "--vae", "config.json")
    with quiet(), _in_one_sentence("base", name):
        if Path(name).is_file():
            pipeline = StableDiffusionPipeline.from_single_file(name, torch_dtype=torch.float32)
            if torch_dtype != torch.float32:
                pipeline.unet.to(torch_dtype)
                pipeline.text_encoder.to(torch_dtype)
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(
                name,
                dtype={"vae": torch.float32, "default": torch_dtype},
                safety_checker=None,
                requires_safety_checker=False,
                revision=revision,
                variant=variant,
            )
    if not isinstance(pipeline, StableDiffusionPipeline):
        raise TrainerError(
            f"{name} is a {type(pipeline).__name__}, but only Stable Diffusion 1.x and 2.x "
            "pipelines can be trained here."
        )
    if vae is not None:
        with quiet(), _in_one_sentence("VAE", vae):
            pipeline.vae = AutoencoderKL.from_pretrained(vae, dtype=torch.float32)
    pipeline.safety_checker = None
    pipeline.vae.enable_slicing()  # decoding a batch at once would need more than training does
    for part in _parts(pipeline):
        part.requires_grad_(False).eval().to(device)
    return pipeline


def fingerprint(pipeline: StableDiffusionPipeline) -> str:
    """A short digest of the weights: eight entries of every tensor of UNet, text encoder and VAE.

    It tells bases apart for caching and is no guard against someone forging one.
    """
    digest = hashlib.sha256()
    for part in _parts(pipeline):
        for name, weight in part.named_parameters():
            flat = weight.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 8)][:8].float().cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _parts(pipeline: StableDiffusionPipeline) -> list[nn.Module]:
    return [pipeline.unet, pipeline.text_encoder, pipeline.vae]


def _check_source(name: str, flag: str, index: str) -> None:
    path = Path(name)
    if path.is_dir() and not (path / index).is_file():
        raise TrainerError(
            f"{flag} {name} is not a diffusers folder: it has no {index}; give the folder that "
            "contains it."
        )
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    if path.is_file() and path.suffix != ".safetensors":
        raise TrainerError(f"{flag} {name} is a file, but not a .safetensors checkpoint.")
    if not path.exists() and (looks_local or path.suffix == ".safetensors"):
        raise TrainerError(
            f"{flag} {name} does not exist: give a diffusers folder, a .safetensors file or a hub "
            "id such as stable-diffusion-v1-5/stable-diffusion-v1-5."
        )


@contextmanager
def _in_one_sentence(part: str, name: str) -> Iterator[None]:
    """Loading fails in a dozen ways with pages of text; the first line says which."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, AttributeError) as error:
        if isinstance(error, OSError) and not Path(name).exists():
            raise TrainerError(
                f"The {part} {name} is no folder here and the hub does not give it: check the "
                "name, the connection and, for a gated model, your login."
            ) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")
        raise TrainerError(f"The {part} {name} cannot be read ({reason}).") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No loading bars: the trainer has one progress line, and it is for training."""
    bars = [
        (library, library.is_progress_bar_enabled())
        for library in (diffusers_logging, transformers_logging)
    ]
    for library, _ in bars:
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, enabled in bars:
            if enabled:
                library.enable_progress_bar()
