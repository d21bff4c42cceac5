"""Load the base of a run, whose family may have no use for some of the options."""

import logging
from collections.abc import Mapping

import torch
from diffusers import DiffusionPipeline

from loldu.base.families import family_of
from loldu.base.open import check_base, load_pipeline
from loldu.errors import LoLDUError
from loldu.options import options, values_of
from trainer.methods.method import method_named
from trainer.options.config import Config
from trainer.training.stages import LOADING, announce

logger = logging.getLogger(__name__)

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def load_base(configs: Mapping[str, Config], device: torch.device) -> DiffusionPipeline:
    """Load the base, and log if it draws poorly at half the size of its own training pictures.

    Args:
        configs: Options of every concept, which have one base.
        device: Device of the run.

    Raises:
        LoLDUError: If it cannot be read or trained, or an option makes no sense for its family.
    """
    config = next(iter(configs.values()))
    announce(LOADING)
    for own in configs.values():
        _check_use(own)
    pipeline = load_pipeline(config.base, torch_dtype=compute_dtype(config), device=device)
    native, resolution = family_of(pipeline).native_resolution(pipeline), config.instance.resolution
    if native is not None and 2 * resolution <= native:
        logger.warning(
            "--resolution %d is at most half of the %d pixels that this base was trained on, at "
            "which it draws poorly; give --resolution %d.",
            *(resolution, native, native),
        )
    return pipeline


def compute_dtype(config: Config) -> torch.dtype:
    """Return the dtype of the frozen base; a base that is itself trained is in fp32."""
    if method_named(config.adapter.method).trains_base:
        return torch.float32
    return DTYPES[config.optimization.mixed_precision]


def _check_use(config: Config) -> None:
    """Refuse options that make no sense for the family of the base, before it is loaded."""
    family, values, known = check_base(config.base), values_of(config), options(Config)
    for name, reason in family.unused_options.items():
        if values[name] != known[name].default:
            raise LoLDUError(
                f"--{name} is not for {family.name}: {reason}; leave it out, or the preset that "
                "has it."
            )
