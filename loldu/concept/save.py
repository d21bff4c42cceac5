"""Save an adapter of a model or a pipeline as a concept file."""

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

from loldu.adapter.base_weight import dtype_name
from loldu.adapter.components import adapted_layers, bare, components, layers_with
from loldu.adapter.config import LoLDUConfig
from loldu.adapter.layer import LoLDULayer
from loldu.concept.format import BASE_DTYPES, Concept, ConceptLayer, write_concept
from loldu.errors import ConceptError

COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "transformer")
"""Names of the components of a pipeline that a concept can change."""


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

    The file holds delta at strength 1, not the state of the training. An adapter that is loaded
    from it starts at this delta with sigma_0 = 1.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        path: The file to write.
        adapter_name: The adapter to write.
        metadata: JSON values to store with it, such as the prompt.
        dtype: float32, or float16 for half the size.
        overwrite: Whether an existing file may be replaced.

    Raises:
        ConceptError: If there is no such adapter, a concept cannot hold it, or the file exists.
    """
    concept = concept_of(model_or_pipeline, adapter_name, metadata)
    write_concept(concept, Path(path), dtype=dtype, overwrite=overwrite)
    return Path(path)


def concept_of(
    model_or_pipeline: Any,  # noqa: ANN401
    adapter_name: str,
    metadata: Mapping[str, Any] | None = None,
) -> Concept:
    """Return an adapter as a concept, without writing a file.

    Raises:
        ConceptError: If there is no such adapter, or a concept cannot hold it.
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


def base_id(model_or_pipeline: Any) -> str:  # noqa: ANN401
    """Return the hub id of the base, or the name of its folder without the path.

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


def require_diagonals_alone(model: Any, adapter_name: str) -> None:  # noqa: ANN401
    """Check that an adapter consists of its diagonals alone.

    Raises:
        ConceptError: If it also trains modules in full.
    """
    if modules := model.peft_config[adapter_name].modules_to_save:
        raise ConceptError(
            f"adapter '{adapter_name}' also trains {', '.join(modules)} in full "
            "(modules_to_save), which a concept cannot hold: use save_pretrained"
        )


def _describe(model: Any, adapter_name: str) -> dict[str, Any]:  # noqa: ANN401
    """Return the configuration of an adapter as JSON values."""
    require_diagonals_alone(model, adapter_name)
    config: LoLDUConfig = model.peft_config[adapter_name]
    values = config.plain_values()
    defaults = LoLDUConfig().to_dict()
    # The base is recorded by its id; base_model_name_or_path may be a local path.
    unwanted = {"base_model_name_or_path", "inference_mode", "peft_version"}
    return {k: v for k, v in values.items() if v != defaults[k] and k not in unwanted}


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
    return ConceptLayer(
        component,
        name,
        module.out_features,
        module.in_features,
        diagonal.factorization,
        base_dtype,
        delta,
        pivots,
        module.fingerprint(),
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
            "base with the same quantization: for any other base, write a LoRA with export_lora",
            stacklevel=3,
        )
