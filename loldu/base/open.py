"""The frozen base: a Stable Diffusion pipeline from a folder, the hub or a single file."""

import hashlib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from diffusers.loaders.single_file_utils import SingleFileComponentError
from diffusers.utils import logging as diffusers_logging
from safetensors import SafetensorError
from torch import nn
from transformers import CLIPTextModel
from transformers.utils import logging as transformers_logging

from loldu.base.single_file import check_checkpoint, refuse_more_channels
from loldu.errors import LoLDUError


def load_pipeline(
    pretrained_model_name_or_path: str,
    *,
    torch_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    vae: str | None = None,
    revision: str | None = None,
    variant: str | None = None,
    single_file_config: str | None = None,
    prediction_type: Literal["epsilon", "v_prediction"] | None = None,
    clip_skip: int = 0,
    safety_checker: bool = False,
) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline, frozen, in evaluation mode.

    The noise scheduler is the base's own. UNet and text encoder are in `torch_dtype`; the VAE is
    always fp32, for in fp16 some overflow while encoding.

    Args:
        pretrained_model_name_or_path: a diffusers folder, a hub id or a `.safetensors` file.
        torch_dtype: of UNet and text encoder.
        device: where all parts go.
        vae: folder, hub id or `.safetensors` file of a VAE to take instead.
        revision: of a hub id.
        variant: of the weight files, such as `fp16`.
        single_file_config: diffusers folder or hub id that tells the layout of a `.safetensors`
            file's parts; the hub's unless given.
        prediction_type: what the UNet predicts; what the base says unless given.
        clip_skip: how many of the text encoder's last layers are left out.
        safety_checker: keep that of the base, where it has one; a single file has none.

    Raises:
        LoLDUError: when there is no such base, it cannot be reached or read, or is of a kind
            that cannot be trained.
    """
    name, single_file = pretrained_model_name_or_path, Path(pretrained_model_name_or_path).is_file()
    check_source(name, "--pretrained_model_name_or_path", "model_index.json")
    if single_file:
        check_checkpoint(Path(name), has_vae=vae is not None)
    if single_file_config is not None:
        flag = "--single_file_config"
        check_source(single_file_config, flag, "model_index.json", may_be_file=False)
    with quiet():
        if not single_file:
            _check_index(name, revision)
        parts: dict[str, Any] = {}
        if vae is not None:
            layout = (single_file_config, None) if single_file else (name, revision)
            parts["vae"] = _load_vae(vae, *layout)
        if single_file:
            pipeline = _load_single_file(name, single_file_config, torch_dtype, parts)
        else:
            pipeline = _load_folder(
                name, revision, variant, torch_dtype, parts, safety_checker=safety_checker
            )
    _refuse_missing_weights(pipeline, name, vae)
    latent_channels = pipeline.vae.config["latent_channels"]
    refuse_more_channels(name, pipeline.unet.config["in_channels"], latent_channels)
    if single_file or not safety_checker:
        pipeline.safety_checker = None
    if prediction_type is not None:
        pipeline.scheduler.register_to_config(prediction_type=prediction_type)
    _check_noise_schedule(pipeline, name)
    _leave_out_last_layers(pipeline.text_encoder, clip_skip)
    pipeline.vae.enable_slicing()  # decoding a batch at once would need more than training does
    checker = [] if pipeline.safety_checker is None else [pipeline.safety_checker]
    for part in (*_parts(pipeline), *checker):
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


def _load_folder(
    name: str,
    revision: str | None,
    variant: str | None,
    torch_dtype: torch.dtype,
    parts: dict[str, Any],
    *,
    safety_checker: bool,
) -> StableDiffusionPipeline:
    if not safety_checker:
        parts = {**parts, "safety_checker": None, "requires_safety_checker": False}
    with _in_one_sentence("base", name):
        return StableDiffusionPipeline.from_pretrained(
            name,
            dtype={"vae": torch.float32, "default": torch_dtype},
            revision=revision,
            variant=variant,
            **parts,
        )


def _load_single_file(
    name: str, layout: str | None, torch_dtype: torch.dtype, parts: dict[str, Any]
) -> StableDiffusionPipeline:
    with _in_one_sentence("base", name, layout):
        pipeline = StableDiffusionPipeline.from_single_file(
            name, config=layout, torch_dtype=torch.float32, **parts
        )
        if torch_dtype != torch.float32:
            pipeline.unet.to(torch_dtype)
            pipeline.text_encoder.to(torch_dtype)
    # By this name, and not by where the file lies, a concept knows its base.
    pipeline.register_to_config(_name_or_path=Path(name).name)
    return pipeline


def _load_vae(vae: str, layout: str | None, revision: str | None) -> AutoencoderKL:
    check_source(vae, "--vae", "config.json")
    with _in_one_sentence("VAE", vae, layout):
        if Path(vae).is_file():
            options = {"config": layout, "subfolder": "vae", "config_revision": revision}
            return AutoencoderKL.from_single_file(vae, torch_dtype=torch.float32, **options)
        return AutoencoderKL.from_pretrained(vae, dtype=torch.float32)


def _refuse_missing_weights(pipeline: StableDiffusionPipeline, name: str, vae: str | None) -> None:
    """Diffusers leaves a weight that it does not find without numbers, and only warns."""
    for part in _parts(pipeline):
        lacking = [key for key, weight in part.named_parameters() if weight.is_meta]
        if lacking:
            source = vae if vae is not None and part is pipeline.vae else name
            raise LoLDUError(
                f"{source} lacks {len(lacking)} weights of the {type(part).__name__}, such as "
                f"{lacking[0]}; download it again, or check that it is what it should be."
            )


def _leave_out_last_layers(text_encoder: CLIPTextModel, count: int) -> None:
    """Clip skip: what is left is the text encoder, in training, drawing and saving alike."""
    layers: Any = text_encoder.encoder.layers
    if count >= len(layers):
        raise LoLDUError(
            f"--clip_skip is {count}, but the text encoder of this base has {len(layers)} layers; "
            "it must be less."
        )
    text_encoder.encoder.layers = layers[: len(layers) - count]
    text_encoder.config.num_hidden_layers = len(layers) - count


def check_source(name: str, flag: str, index: str, *, may_be_file: bool = True) -> None:
    """Refuse a place where no model can be, before anything is loaded or fetched.

    Args:
        name: a folder, a hub id or a file.
        flag: the option that gives it, for what is told.
        index: the file that such a folder has.
        may_be_file: whether a `.safetensors` file will do.

    Raises:
        LoLDUError: it can be none.
    """
    path = Path(name)
    kinds = "a diffusers folder, a .safetensors file" if may_be_file else "a diffusers folder"
    if path.is_dir() and not (path / index).is_file():
        raise LoLDUError(
            f"{flag} {name} is not a diffusers folder: it has no {index}; give the folder that "
            "contains it."
        )
    if path.is_file() and not may_be_file:
        raise LoLDUError(f"{flag} {name} is a file; give a diffusers folder or a hub id.")
    if path.is_file() and path.suffix != ".safetensors":
        raise LoLDUError(f"{flag} {name} is a file, but not a .safetensors checkpoint.")
    looks_local = path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1
    if not path.exists() and (looks_local or path.suffix == ".safetensors"):
        raise LoLDUError(
            f"{flag} {name} does not exist: give {kinds} or a hub id such as "
            "stable-diffusion-v1-5/stable-diffusion-v1-5."
        )


def _check_index(name: str, revision: str | None) -> None:
    """Refuse other kinds of pipelines before their gigabytes are fetched."""
    with _in_one_sentence("base", name):
        index: Any = StableDiffusionPipeline.load_config(name, revision=revision)
    kinds = {part: index.get(part, [None, None])[1] for part in ("unet", "text_encoder")}
    wanted = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel"}
    if kinds != wanted or "text_encoder_2" in index:
        raise LoLDUError(
            f"{name} is a {index.get('_class_name')}, but only Stable Diffusion 1.x and 2.x can be "
            "trained here."
        )


def _check_noise_schedule(pipeline: StableDiffusionPipeline, name: str) -> None:
    told = pipeline.scheduler.config
    if told["prediction_type"] == "epsilon" and told.get("rescale_betas_zero_snr"):
        raise LoLDUError(
            f"The noise schedule of {name} ends in pure noise (rescale_betas_zero_snr), from which "
            "epsilon draws nothing; if it predicts velocity, give --prediction_type v_prediction."
        )


@contextmanager
def _in_one_sentence(part: str, name: str, layout: str | None = None) -> Iterator[None]:
    """Loading fails in a dozen ways with pages of text; the first sentence says which.

    Args:
        part: what is loaded.
        name: its folder, file or hub id.
        layout: folder or hub id that tells the layout of a file; the hub's choice unless given.
    """
    try:
        yield
    except (
        *(OSError, ValueError, KeyError, RuntimeError, AttributeError, TypeError),
        *(SafetensorError, SingleFileComponentError),
    ) as error:
        path = Path(name)
        if isinstance(error, OSError) and not path.exists():
            raise LoLDUError(
                f"The {part} {name} is no folder here and the hub does not give it: check the "
                "name, the connection and, for a gated model, your login."
            ) from error
        if isinstance(error, OSError) and path.is_file() and not (layout and Path(layout).is_dir()):
            raise LoLDUError(
                f"The {part} {name} does not tell its layout, and the hub does not give "
                f"{layout or 'it'}: give any diffusers folder of the same kind of base with "
                "--single_file_config."
            ) from error
        if isinstance(error, SingleFileComponentError | NotImplementedError):
            reason = "it lacks weights"
        else:
            reason = re.split(r"\.\s|\n", str(error).strip())[0].rstrip(".:")
        reason = reason or type(error).__name__
        raise LoLDUError(f"The {part} {name} cannot be read ({reason}).") from error


@contextmanager
def quiet() -> Iterator[None]:
    """No loading bars and no advice: what matters becomes an error here."""
    bars = [
        (library, library.is_progress_bar_enabled())
        for library in (diffusers_logging, transformers_logging)
    ]
    for library, _ in bars:
        library.disable_progress_bar()
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            # An option of old, which diffusers passes to the hub's library.
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks")
            yield
    finally:
        diffusers_logging.set_verbosity(verbosity)
        for library, enabled in bars:
            if enabled:
                library.enable_progress_bar()
