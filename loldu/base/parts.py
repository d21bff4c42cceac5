"""A base model for a command: the parts that a concept changes alone, or the whole pipeline."""

# diffusers and transformers are typed in part only, and are imported where they are needed: the
# library itself works without diffusers.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

import importlib
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from loldu.adapter.components import BARE
from loldu.concept.format import BASE_DTYPES, Concept, reason_of
from loldu.concept.load import COMPONENTS
from loldu.errors import ConceptError

_INDEX = "model_index.json"
_UNREADABLE = (OSError, ValueError, RuntimeError, AttributeError, KeyError, TypeError)


def load_base(base: str, concept: Concept) -> SimpleNamespace:
    """Load what a concept changes, each component in the dtype it was trained on.

    Args:
        base: A diffusers folder or a hub id.
        concept: The concept that tells which components are wanted.

    Returns:
        A pipeline as far as concepts need one: `components` by name, None where not loaded.

    Raises:
        ConceptError: There is no such base, or it cannot be reached or read.
    """
    with quiet():
        return _load(base, concept)


def load_pipeline(base: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    """Load a whole diffusers pipeline.

    Args:
        base: A diffusers folder or a hub id.
        dtype: The dtype of all its weights.

    Raises:
        ConceptError: There is no such base, or it cannot be reached or read.
    """
    from diffusers import DiffusionPipeline

    with quiet():
        _read_index(base)
        try:
            return DiffusionPipeline.from_pretrained(base, torch_dtype=dtype)
        except _UNREADABLE as error:
            raise ConceptError(f"{base} cannot be read ({reason_of(error)})") from error


def _load(base: str, concept: Concept) -> SimpleNamespace:
    index = _read_index(base)
    wanted: dict[str, torch.dtype] = {}
    for layer in concept.layers:
        # A concept saved from a model on its own may belong to any component.
        places = COMPONENTS if layer.component == BARE else (layer.component,)
        places = [place for place in places if place in index]
        if not places:
            raise ConceptError(
                f"{base} has no {layer.component}, which this concept changes: give the base it "
                "was trained on"
            )
        wanted |= dict.fromkeys(places, BASE_DTYPES[layer.base_dtype])
    components: dict[str, Any] = dict.fromkeys(index)
    for name, dtype in wanted.items():
        components[name] = _load_component(base, name, *index[name], dtype)
    return SimpleNamespace(components=components)


def _read_index(base: str) -> dict[str, tuple[str, str]]:
    """The library and class of each component of a pipeline, by name."""
    from diffusers import DiffusionPipeline

    if Path(base).exists() and not (Path(base) / _INDEX).is_file():
        raise ConceptError(f"{base} is not a diffusers folder: it has no {_INDEX}")
    try:
        index: Any = DiffusionPipeline.load_config(base)
    except (OSError, ValueError) as error:
        raise ConceptError(
            f"{base} is no diffusers folder here, and the hub does not give it: check the name, "
            "the connection and, for a gated model, your login"
        ) from error
    return {
        name: (entry[0], entry[1])
        for name, entry in index.items()
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None
    }


def _load_component(base: str, name: str, library: str, kind: str, dtype: torch.dtype) -> Any:  # noqa: ANN401
    if library not in ("diffusers", "transformers"):
        raise ConceptError(f"the {name} of {base} is of {library}, which a concept cannot change")
    try:
        model = getattr(importlib.import_module(library), kind)
        return model.from_pretrained(base, subfolder=name, dtype=dtype)
    except _UNREADABLE as error:
        raise ConceptError(f"the {name} of {base} cannot be read ({reason_of(error)})") from error


@contextmanager
def quiet() -> Generator[None]:
    """Keep libraries from warnings and progress bars: a command has one thing to say."""
    from diffusers.utils import logging as diffusers_logging
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    libraries = (diffusers_logging, transformers_logging, hub_logging)
    before = [library.get_verbosity() for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        diffusers_logging.enable_progress_bar()
        transformers_logging.enable_progress_bar()
        for library, level in zip(libraries, before, strict=True):
            library.set_verbosity(level)
