"""Save a model or a pipeline with its concepts merged into the weights."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import copy
import os
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import nn

from loldu.adapter.components import BARE, adapted_layers, bare, components, require_unmerged
from loldu.adapter.layer import LoLDULayer
from loldu.concept.format import BASE_DTYPES
from loldu.errors import ConceptError
from loldu.files import drafted

_ADAPTED = (BaseTunerLayer, AuxiliaryTrainingWrapper)


@torch.no_grad()
def save_merged(
    model_or_pipeline: Any,  # noqa: ANN401
    folder: str | os.PathLike[str],
) -> Path:
    """Save a folder in which every adapted weight is ``W + Σ_i s_i delta_W_i``.

    `DiffusionPipeline.from_pretrained`, or `from_pretrained` of a single model, loads it without
    loldu and peft. The folder holds the active adapters at their current strengths, or their
    mixture. Weights keep their dtype; in half precision the sum is computed in float32 and rounded
    once. The given pipeline does not change, and only the changed weights are copied.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a diffusers pipeline.
        folder: The folder to write; it must not exist. It appears when it is complete.

    Returns:
        The folder.

    Raises:
        ConceptError: If no concept is active, every picture has its own, adapters are merged
            already or of another method, weights are quantized or not in memory, or the folder
            exists.
    """
    folder = Path(folder)
    check_folder(folder)
    alone = isinstance(model_or_pipeline, nn.Module)
    if not hasattr(bare(model_or_pipeline) if alone else model_or_pipeline, "save_pretrained"):
        raise ConceptError(
            f"a {type(model_or_pipeline).__name__} has no save_pretrained: use PEFT's "
            "merge_and_unload and save the state_dict yourself"
        )
    parts = components(model_or_pipeline)
    _require_one_mixture(adapted_layers(model_or_pipeline))
    memo: dict[int, Any] = {}
    for name, part in parts.items():
        for tensor in chain(part.parameters(), part.buffers()):
            if tensor.is_meta:
                raise ConceptError(
                    f"the {name} has weights that are not in memory: save it before its weights "
                    "are offloaded"
                )
            memo[id(tensor)] = tensor
    plain = {
        name: _without_adapters(bare(part), memo)
        for name, part in parts.items()
        if bare(part) is not part or any(isinstance(m, _ADAPTED) for m in part.modules())
    }
    result: Any
    if alone:
        result = plain[BARE]
    else:
        result = copy.copy(model_or_pipeline)
        for name, part in plain.items():
            setattr(result, name, part)
    with drafted(folder) as draft:
        result.save_pretrained(draft)
    return folder


def check_folder(folder: Path) -> None:
    """Check that a folder can be written here.

    Raises:
        ConceptError: If the path exists.
    """
    if folder.exists():
        raise ConceptError(f"{folder} exists: choose another name for the folder to write")


def _require_one_mixture(layers: list[LoLDULayer]) -> None:
    if not any(layer.adapters_in_use() and not layer.disable_adapters for layer in layers):
        raise ConceptError("no concept is active here: load one, or make one active with mix")
    for layer in layers:
        if layer.rows is not None:
            raise ConceptError(
                "every picture has its own concept, but one set of weights can hold only one "
                "mixture: choose with mix, or call set_concepts(pipeline, None)"
            )
    require_unmerged(layers)


def _without_adapters(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """Return a copy of a model with plain layers; it shares all tensors except the merged ones.

    Args:
        model: The model, without PEFT's wrapper.
        memo: The memo of `copy.deepcopy`, in which every tensor stands for itself.
    """
    for name, module in model.named_modules():
        if isinstance(module, LoLDULayer):
            memo[id(module)] = _merged(module, memo)
        elif isinstance(module, ModulesToSaveWrapper):
            memo[id(module)] = copy.deepcopy(_in_use(module), memo)
        elif isinstance(module, _ADAPTED):
            raise ConceptError(
                f"layer '{name}' has an adapter of another method: merge or unload it first"
            )
    plain = copy.deepcopy(model, memo)
    for trace in ("peft_config", "_hf_peft_config_loaded"):
        vars(plain).pop(trace, None)
    return plain


def _merged(layer: LoLDULayer, memo: dict[int, Any]) -> nn.Module:
    """Return a plain layer with the effective weight of an adapted one."""
    base = layer.get_base_layer()
    weight = base.weight
    if not isinstance(weight, nn.Parameter) or weight.dtype not in BASE_DTYPES.values():
        raise ConceptError(
            f"the weight of layer '{layer.layer_name}' is quantized: load the base in a floating "
            "dtype"
        )
    total = weight.data
    for name in layer.adapters_in_use():
        if layer.strength[name] != 0 and not layer.disable_adapters:
            total = total + layer.get_delta_weight(name)
    total = total.to(weight.dtype)
    if not torch.isfinite(total).all():
        raise ConceptError(
            f"the merged weight of layer '{layer.layer_name}' is not finite in {weight.dtype}: "
            "lower the strength, or load the base in float32"
        )
    memo[id(weight)] = nn.Parameter(total, requires_grad=weight.requires_grad)
    plain = copy.deepcopy(base, memo)
    memo[id(weight)] = weight
    return plain


def _in_use(wrapper: ModulesToSaveWrapper) -> nn.Module:
    """Return the module that a wrapper of fully trained modules calls."""
    active = [name for name in wrapper.active_adapters if name in wrapper.modules_to_save]
    if wrapper.disable_adapters or not active:
        return wrapper.original_module
    return wrapper.modules_to_save[active[0]]
