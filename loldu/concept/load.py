"""A concept in and out of a model or a diffusers pipeline."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from loldu.adapter.base_layer import dtype_name
from loldu.adapter.components import (
    BARE,
    adapted_layers,
    bare,
    components,
    fingerprint_of,
    layers_with,
    part_with,
    weight_of,
)
from loldu.adapter.config import LoLDUConfig
from loldu.adapter.factorization import Pivoting
from loldu.adapter.injection import LayerDelta, activate, add_adapter, require_free
from loldu.adapter.layer import LoLDULayer
from loldu.concept.format import (
    BASE_DTYPES,
    Concept,
    ConceptLayer,
    read_concept,
    reason_of,
    require_finite,
    same_base,
    write_concept,
)
from loldu.concept.peft_folder import read_peft_folder
from loldu.errors import ConceptError

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer")


def save_concept(
    model_or_pipeline: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    metadata: Mapping[str, Any] | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    overwrite: bool = False,
) -> Path:
    """Write an adapter as one concept file: its deltas, pivots and a fingerprint of its base.

    The file holds what the adapter does, at strength 1, not the state of its training: delta
    alone, from which a loaded adapter starts with sigma_0 = 1.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        path: Where to write.
        adapter_name: The adapter to write.
        metadata: JSON values to keep with it, such as the prompt.
        dtype: float32, or float16 for half the size.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ConceptError: There is no such adapter, it holds what a concept cannot, or the file exists.
    """
    concept = concept_of(model_or_pipeline, adapter_name, metadata)
    write_concept(concept, Path(path), dtype=dtype, overwrite=overwrite)
    return Path(path)


def concept_of(
    model_or_pipeline: Any,  # noqa: ANN401
    adapter_name: str,
    metadata: Mapping[str, Any] | None = None,
) -> Concept:
    """Return an adapter as the concept that a file of it would hold.

    Raises:
        ConceptError: There is no such adapter, or it holds what a concept cannot.
    """
    layers: list[ConceptLayer] = []
    config: dict[str, Any] = {}
    parts = components(model_or_pipeline)
    for component, part in parts.items():
        found = [
            _read_layer(component, name, module, adapter_name)
            for name, module in layers_with(bare(part), adapter_name).items()
        ]
        if found:
            config[component] = _describe(bare(part), adapter_name)
            layers += found
    if not layers:
        raise ConceptError(
            f"there is no LoLDU adapter named '{adapter_name}' to save: check adapter_name"
        )
    _warn_of_quantization(model_or_pipeline, adapter_name)
    base = base_id(model_or_pipeline)
    return Concept(base, config, tuple(layers), dict(metadata or {}))


def load_concept(
    model_or_pipeline: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    strength: float | int = 1.0,
) -> Concept:
    """Load a concept file as an adapter, and make it the active one.

    Everything is checked before anything is changed: a refused file leaves the model as it was.

    Args:
        model_or_pipeline: A PeftModel, a model, or a pipeline.
        path: The concept file; or, for a single model or component, a folder that PEFT's
            `save_pretrained` wrote, which tells less about its base (whether the weights are those
            it was trained on is seen by their diagonals, to some per cent).
        adapter_name: Name for the adapter; it must not be taken.
        strength: Factor on the change of the weights.

    Raises:
        ConceptError: The file is not a sound concept, or was made for another base; or the name is
            taken, adapters are merged into the base, or the strength is not finite.
    """
    require_finite(strength, adapter_name)
    concept, targets = read_verified(model_or_pipeline, path)
    for part in targets.values():
        require_free(part, adapter_name)
    deltas: dict[str, dict[str, LayerDelta]] = {component: {} for component in targets}
    bases: dict[str, Pivoting | None] = {}
    for y in concept.layers:
        deltas[y.component][y.name] = LayerDelta(y.delta, y.pivots, strength)
        bases[y.component] = None if y.factorization == "svd" else y.factorization
    try:
        add_adapter(targets, adapter_name, deltas, bases)
    except ValueError as error:
        raise ConceptError(
            f"{path} does not fit this base in its dtype ({reason_of(error)}): load the base in "
            "the dtype it was trained on"
        ) from error
    for part in components(model_or_pipeline).values():
        activate(part, adapter_name)
    return concept


def verify_concept(
    model_or_pipeline: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
) -> Concept:
    """Read a concept file and compare every layer it changes with a base; nothing is loaded.

    Args:
        model_or_pipeline: A PeftModel, a model, or a pipeline.
        path: The concept file, or a folder as for `load_concept`.

    Raises:
        ConceptError: The file is not a sound concept, or was made for another base; the message
            names the first layer that differs.
    """
    return read_verified(model_or_pipeline, path)[0]


def read_verified(
    model_or_pipeline: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
) -> tuple[Concept, dict[str, nn.Module]]:
    """Return a concept that fits a base, and the part of the base that each component is for.

    Raises:
        ConceptError: The file is not a sound concept, or was made for another base.
    """
    parts = components(model_or_pipeline)
    concept = read_peft_folder(Path(path), parts) if Path(path).is_dir() else read_concept(path)
    targets = _targets(concept, parts, path)
    for component, part in targets.items():
        _verify([y for y in concept.layers if y.component == component], bare(part), path)
    return concept, targets


def base_id(model_or_pipeline: Any) -> str:  # noqa: ANN401
    """Return the hub id of the base, or the name of its folder but not the folder's place.

    A component of a pipeline knows the path of its own folder inside the base's.
    """
    source = model_or_pipeline
    if isinstance(source, nn.Module):
        source = bare(source)
    name = str(getattr(getattr(source, "config", None), "_name_or_path", None) or "")
    if hub := re.search(r"models--(.+?)--(.+?)[/\\]snapshots[/\\]", name):
        return f"{hub[1]}/{hub[2]}"
    folder = Path(name)
    if not (folder.is_absolute() or folder.is_dir()) or not name:
        return name
    return folder.resolve().parent.name if folder.name in COMPONENTS else folder.resolve().name


def _describe(model: Any, adapter_name: str) -> dict[str, Any]:  # noqa: ANN401
    """The adapter's configuration as JSON values."""
    require_diagonals_alone(model, adapter_name)
    config: LoLDUConfig = model.peft_config[adapter_name]
    values = config.plain_values()
    defaults = LoLDUConfig().to_dict()
    # Where it came from (a path, perhaps) is told by the concept's base.
    unwanted = {"base_model_name_or_path", "inference_mode", "peft_version"}
    return {k: v for k, v in values.items() if v != defaults[k] and k not in unwanted}


def require_diagonals_alone(model: Any, adapter_name: str) -> None:  # noqa: ANN401
    """Check that an adapter is all in its diagonals.

    Raises:
        ConceptError: It also trains modules in full.
    """
    if modules := model.peft_config[adapter_name].modules_to_save:
        raise ConceptError(
            f"adapter '{adapter_name}' also trains {', '.join(modules)} in full "
            "(modules_to_save), which a concept cannot hold: use save_pretrained"
        )


def _warn_of_quantization(model_or_pipeline: Any, adapter_name: str) -> None:  # noqa: ANN401
    backends = {
        layer.quantization_backend.backend_name
        for layer in adapted_layers(model_or_pipeline)
        if adapter_name in layer.r and layer.quantization_backend is not None
    }
    if backends:
        warnings.warn(
            f"the base is quantized ({', '.join(sorted(backends))}), so this concept fits only a "
            "base that is quantized alike: for any other, write a LoRA with export_lora",
            stacklevel=3,
        )


def _read_layer(component: str, name: str, module: LoLDULayer, adapter_name: str) -> ConceptLayer:
    module.follow_weight()
    diagonal, weight = module.diagonal(adapter_name), module.base_weight()
    if diagonal.dz.is_meta or weight.is_meta:
        raise ConceptError(
            f"layer '{name}' has no values here: load the model's weights first, or save the "
            "concept before offloading them"
        )
    base_dtype = dtype_name(weight)
    if base_dtype not in BASE_DTYPES:
        raise ConceptError(
            f"layer '{name}' has a {base_dtype} weight, for which a concept would not be portable: "
            "load the base in a floating dtype"
        )
    delta = diagonal.delta().detach().cpu()
    if not torch.isfinite(delta).all():
        raise ConceptError(f"the delta of layer '{name}' is not finite: training diverged")
    pivots = None if diagonal.pivots is None else diagonal.pivots.cpu()
    factorization = diagonal.pivoting or "svd"
    return ConceptLayer(
        component,
        name,
        module.out_features,
        module.in_features,
        factorization,
        base_dtype,
        delta,
        pivots,
        module.fingerprint(),
    )


def _targets(
    concept: Concept, parts: dict[str, nn.Module], path: str | os.PathLike[str]
) -> dict[str, nn.Module]:
    """The part of the model that each component of a concept belongs to."""
    names: dict[str, set[str]] = {}
    for layer in concept.layers:
        names.setdefault(layer.component, set()).add(layer.name)
    targets: dict[str, nn.Module] = {}
    for component, layers in names.items():
        if component in parts:
            targets[component] = parts[component]
        elif parts and len(names) == 1 and BARE in (component, *parts):
            # A model saved on its own, or loaded on its own: its layers tell where it belongs.
            _, targets[component] = part_with(parts, layers)
        else:
            raise ConceptError(
                f"{path} also changes the {component}, which was not given: pass the whole pipeline"
            )
    return targets


def _verify(layers: list[ConceptLayer], model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Compare every layer of a concept with a base model.

    Raises:
        ConceptError: The first layer that differs, and how, or whose weight is elsewhere.
    """
    for layer in layers:
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
        elif not same_base(layer, weight.dtype, fingerprint_of(module)):
            problem = "whose weight is not the one here (perhaps it is quantized otherwise)"
        elif layer.factorization == "svd" and layer.base_dtype != dtype_name(weight):
            problem = (
                f"whose SVD changes with the dtype: it was trained on {layer.base_dtype}, and this "
                f"is {dtype_name(weight)}"
            )
        else:
            continue
        raise ConceptError(
            f"{path} was made for another base model: it changes layer '{layer.name}', "
            f"{problem}; load the base it was trained on"
        )
