"""Verify that a concept fits a base: names, sizes and fingerprints of the layers."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loldu.adapter.base_weight import dtype_name
from loldu.adapter.components import BARE, bare, components, fingerprint_of, part_with, weight_of
from loldu.concept.format import BASE_DTYPES, Concept, ConceptLayer, read_concept
from loldu.concept.metadata import base_of, shown
from loldu.concept.peft_folder import read_peft_folder
from loldu.errors import ConceptError


def verify_concept(
    model_or_pipeline: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
) -> Concept:
    """Compare every layer that a concept changes with a base; nothing is loaded.

    Args:
        model_or_pipeline: A PeftModel, a model, or a pipeline.
        path: The concept file, or a folder as for `load_concept`.

    Raises:
        ConceptError: If the file is not a sound concept or was made for another base; the message
            names the first layer that differs.
    """
    return read_verified(model_or_pipeline, path)[0]


def read_verified(
    model_or_pipeline: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
) -> tuple[Concept, dict[str, nn.Module]]:
    """Return a concept that fits a base, and the part of the base for each component.

    Raises:
        ConceptError: If the file is not a sound concept or was made for another base.
    """
    parts = components(model_or_pipeline)
    concept = read_peft_folder(Path(path), parts) if Path(path).is_dir() else read_concept(path)
    return concept, verified_parts(concept, parts, path)


def verified_parts(
    concept: Concept, parts: dict[str, nn.Module], path: str | os.PathLike[str]
) -> dict[str, nn.Module]:
    """Compare every layer of a concept with a base; return the base's part for each component.

    Args:
        concept: The concept.
        parts: Modules of the base, by component.
        path: The file that the concept comes from, for messages.

    Raises:
        ConceptError: If it was made for another base; the message names the first layer that
            differs.
    """
    targets = _targets(concept, parts, path)
    for component, part in targets.items():
        _verify_layers(concept, component, bare(part), path)
    return targets


def _targets(
    concept: Concept, parts: dict[str, nn.Module], path: str | os.PathLike[str]
) -> dict[str, nn.Module]:
    """Return the part of the model for each component of a concept."""
    names: dict[str, set[str]] = {}
    for layer in concept.layers:
        names.setdefault(layer.component, set()).add(layer.name)
    targets: dict[str, nn.Module] = {}
    for component, layers in names.items():
        if component in parts:
            targets[component] = parts[component]
        elif parts and len(names) == 1 and BARE in (component, *parts):
            # A model was saved or is loaded on its own: the names of its layers decide.
            _, targets[component] = part_with(parts, layers)
        elif BARE in parts:
            raise ConceptError(
                f"{path} also changes the {component}, which was not given: pass the whole pipeline"
            )
        else:
            raise ConceptError(
                f"{_for_another_base(concept, path)}: it changes the {component}, which this base "
                "does not have; load the base it was trained on"
            )
    return targets


def _for_another_base(concept: Concept, path: str | os.PathLike[str]) -> str:
    """Return the beginning of a message, with the family of the concept's base if it is known."""
    family = base_of(concept.metadata).get("family")
    return f"{path} was made for another base model{f' ({shown(family)})' if family else ''}"


def _verify_layers(
    concept: Concept, component: str, model: nn.Module, path: str | os.PathLike[str]
) -> None:
    """Compare every layer of a concept with a base model.

    Raises:
        ConceptError: If a layer differs; the message says which and how. Also if a weight is on the
            meta device.
    """
    for layer in concept.layers:
        if layer.component != component:
            continue
        try:
            module = model.get_submodule(layer.name)
        except AttributeError:
            module = None
        weight = weight_of(module)
        if weight is None:
            problem = "which this model does not have as a linear layer"
        elif tuple(weight.shape) != (layer.out_features, layer.in_features):
            here = " x ".join(str(size) for size in weight.shape)
            problem = f"{layer.out_features} x {layer.in_features}, which is {here} here"
        elif weight.is_meta:
            raise ConceptError(
                f"layer '{layer.name}' has no weight to compare with that of {path}: load the "
                "concept first, then offload the model"
            )
        elif not _is_same_base(layer, weight.dtype, fingerprint_of(module)):
            problem = "whose weight is not the one here (perhaps it is quantized otherwise)"
        elif layer.pivots is None and layer.base_dtype != dtype_name(weight):
            problem = (
                f"whose factors change with the dtype: it was trained on {layer.base_dtype}, and "
                f"this is {dtype_name(weight)}"
            )
        else:
            continue
        raise ConceptError(
            f"{_for_another_base(concept, path)}: it changes layer '{layer.name}', {problem}; load "
            "the base it was trained on"
        )


def _is_same_base(layer: ConceptLayer, dtype: torch.dtype, fingerprint: Float[Tensor, "3"]) -> bool:
    """Return whether a weight is the one of a layer, up to the rounding of the coarser dtype."""
    if dtype not in BASE_DTYPES.values():
        return False
    coarser = max(torch.finfo(d).eps for d in (BASE_DTYPES[layer.base_dtype], dtype))
    # Rounding W moves a projection by 0.1 eps ‖W‖, one standard deviation; summing it moves less.
    tolerance = max(0.75 * coarser, 1e-6) * float(layer.fingerprint[0])
    return bool(((fingerprint - layer.fingerprint).abs() <= tolerance).all())
