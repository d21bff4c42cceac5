"""Load any diffusers base for the `loldu` command: only what a concept changes, or everything."""

# diffusers and transformers are typed in part only, and are imported where they are needed: the
# library itself works without diffusers.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import importlib
from types import SimpleNamespace
from typing import Any

import torch

from loldu.adapter.components import BARE
from loldu.base.source import check_source, quiet, reading
from loldu.concept.format import BASE_DTYPES, Concept
from loldu.concept.save import COMPONENTS
from loldu.errors import ConceptError


def load_changed_parts(base: str, concept: Concept) -> SimpleNamespace:
    """Load the components that a concept changes, each in the dtype it was trained on.

    Args:
        base: A diffusers folder or a hub id.
        concept: The concept whose layers name the components.

    Returns:
        A stand-in for a pipeline: `components` by name, None where not loaded.

    Raises:
        LoLDUError: If there is no such base, it cannot be read, or it has no such component.
    """
    with quiet():
        index = _read_index(base)
        wanted: dict[str, torch.dtype] = {}
        for layer in concept.layers:
            # A concept saved from a model on its own may belong to any component.
            names = COMPONENTS if layer.component == BARE else (layer.component,)
            names = [name for name in names if name in index]
            if not names:
                raise ConceptError(
                    f"{base} has no {layer.component}, which this concept changes: give the base "
                    "it was trained on"
                )
            wanted |= dict.fromkeys(names, BASE_DTYPES[layer.base_dtype])
        components: dict[str, Any] = dict.fromkeys(index)
        for name, dtype in wanted.items():
            components[name] = _load_component(base, name, *index[name], dtype)
    return SimpleNamespace(components=components)


def load_whole(base: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Load a whole diffusers pipeline of any kind.

    Args:
        base: A diffusers folder or a hub id.
        dtype: Dtype of all weights.

    Raises:
        LoLDUError: If there is no such base, or it cannot be read.
    """
    from diffusers import DiffusionPipeline

    with quiet():
        _read_index(base)
        with reading("base", base):
            return DiffusionPipeline.from_pretrained(base, torch_dtype=dtype)


def _read_index(base: str) -> dict[str, tuple[str, str]]:
    """Return the library and class of each component of a pipeline, by name."""
    from diffusers import DiffusionPipeline

    check_source(base, "The base", may_be_file=False)
    with reading("base", base):
        index: Any = DiffusionPipeline.load_config(base)
    return {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None
    }


def _load_component(base: str, name: str, library: str, kind: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    if library not in ("diffusers", "transformers"):
        raise ConceptError(f"the {name} of {base} is of {library}, which a concept cannot change")
    with reading(f"{name} of the base", base):
        model = getattr(importlib.import_module(library), kind)
        return model.from_pretrained(base, subfolder=name, dtype=dtype)
