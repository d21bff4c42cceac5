"""Open the frozen base: from a folder, the Hub or a single file, of any known family."""

# diffusers is typed in part only, and loads its public names lazily.
# pyright: reportPrivateImportUsage=false, reportUnknownMemberType=false

import hashlib
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn

from loldu.base.config import BaseModelConfig
from loldu.base.families import FAMILIES, family_of, known_families
from loldu.base.family import Family
from loldu.base.single_file import tensor_shapes
from loldu.base.source import check_source, quiet, reading
from loldu.errors import LoLDUError


def load_pipeline(
    base: BaseModelConfig | str,
    *,
    torch_dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    safety_checker: bool = False,
) -> DiffusionPipeline:
    """Load a pipeline whose models are frozen and in evaluation mode.

    The noise scheduler is the base's own. The VAE is always float32.

    Args:
        base: The base and how to read it; a string is its folder, hub id or `.safetensors` file.
        torch_dtype: Dtype of the network and the text encoders.
        device: Device of all models.
        safety_checker: Whether to keep the base's own safety checker; a single file has none.

    Raises:
        LoLDUError: If there is no such base, or it cannot be downloaded, read or trained.
    """
    if isinstance(base, str):
        base = BaseModelConfig(base)
    family = check_base(base)
    with quiet():
        pipeline = family.open(base, torch_dtype=torch_dtype, safety_checker=safety_checker)
    _refuse_missing_weights(pipeline, family, base)
    for part in pipeline.components.values():
        if isinstance(part, nn.Module):
            part.requires_grad_(False).eval().to(device)
    return pipeline


def check_base(base: BaseModelConfig) -> Family:
    """Return the family of a base by its index or header, without loading weights.

    A hub id needs the network, unless its index was downloaded before.

    Raises:
        LoLDUError: If there is no such base, or it lacks a part or cannot be trained.
    """
    name = base.pretrained_model_name_or_path
    check_source(name, "--pretrained_model_name_or_path")
    if base.single_file_config is not None:
        check_source(base.single_file_config, "--single_file_config", may_be_file=False)
    with quiet():
        family = _find_family(base)
    family.check_files(base)
    return family


def weights_digest(pipeline: DiffusionPipeline) -> str:
    """Return a short digest of the weights: eight entries of every tensor that makes pictures.

    It identifies bases in caches and records; it does not protect against forgery.
    """
    digest = hashlib.sha256()
    for part in _parts(pipeline, family_of(pipeline)).values():
        for name, weight in part.named_parameters():
            flat = weight.detach().flatten()
            sample = flat[:: max(1, flat.numel() // 8)][:8].float().cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _parts(pipeline: DiffusionPipeline, family: Family) -> dict[str, nn.Module]:
    names = (family.network, *family.text_encoders, family.vae)
    return {name: getattr(pipeline, name) for name in names}


def _find_family(base: BaseModelConfig) -> Family:
    """Find the family by the header or the index, before gigabytes are downloaded."""
    name = base.pretrained_model_name_or_path
    if Path(name).is_file():
        shapes = tensor_shapes(Path(name))
        # For an unknown file, Stable Diffusion's `check_files` explains what it is instead.
        return next((f for f in FAMILIES if f.matches_file(shapes)), FAMILIES[0])
    with reading("base", name):
        index: Any = DiffusionPipeline.load_config(name, revision=base.revision)
    for family in FAMILIES:
        if family.matches(index):
            return family
    raise LoLDUError(
        f"{name} is a {index.get('_class_name')}, but only {known_families()} can be trained here."
    )


def _refuse_missing_weights(
    pipeline: DiffusionPipeline, family: Family, base: BaseModelConfig
) -> None:
    """Refuse a base with a missing weight: diffusers only warns and leaves it uninitialized."""
    for name, part in _parts(pipeline, family).items():
        missing = [key for key, weight in part.named_parameters() if weight.is_meta]
        if missing:
            is_other_vae = base.vae is not None and name == family.vae
            source = base.vae if is_other_vae else base.pretrained_model_name_or_path
            raise LoLDUError(
                f"{source} lacks {len(missing)} weights of the {type(part).__name__}, such as "
                f"{missing[0]}; download it again, or check that it is the right file."
            )
