"""The model families that can be opened, and the family of a pipeline."""

# diffusers loads its public names lazily, which looks private to pyright.
# pyright: reportPrivateImportUsage=false

from typing import Any

from diffusers import DiffusionPipeline

from loldu.base.family import Family
from loldu.base.flux2_klein import Flux2Klein
from loldu.base.stable_diffusion import StableDiffusion
from loldu.base.stable_diffusion_xl import StableDiffusionXL
from loldu.errors import LoLDUError

FAMILIES: list[Family] = [StableDiffusion(), StableDiffusionXL(), Flux2Klein()]
"""Every family; a new one is added here."""


def family_of(pipeline: DiffusionPipeline) -> Family:
    """Return the family of a pipeline.

    Raises:
        LoLDUError: If no family has pipelines of this class.
    """
    for family in FAMILIES:
        if isinstance(pipeline, family.pipeline_class):
            return family
    raise LoLDUError(f"A {type(pipeline).__name__} cannot be trained; only {known_families()} can.")


def network_of(pipeline: DiffusionPipeline) -> Any:  # noqa: ANN401
    """Return the network that denoises and carries the adapter (a diffusers model)."""
    return getattr(pipeline, family_of(pipeline).network)


def known_families() -> str:
    """Return the names of all families, for messages."""
    *others, last = (family.name for family in FAMILIES)
    return f"{', '.join(others)} or {last}"
