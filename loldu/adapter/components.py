"""The models of a pipeline, or a model on its own, and the adapted layers in them."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from jaxtyping import Float
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from loldu.adapter.base_weight import fingerprint, weight_matrix
from loldu.adapter.layer import LoLDULayer
from loldu.errors import ConceptError

BARE = "model"
"""The component name of a model on its own."""


def components(model_or_pipeline: Any) -> dict[str, nn.Module]:  # noqa: ANN401
    """Return the modules of a pipeline by component name, or a model on its own.

    Raises:
        TypeError: If it is neither a model nor a pipeline.
    """
    if isinstance(model_or_pipeline, nn.Module):
        return {BARE: model_or_pipeline}
    parts: object = getattr(model_or_pipeline, "components", None)
    if not isinstance(parts, Mapping):
        raise TypeError(
            f"expected a model or a diffusers pipeline, got {type(model_or_pipeline).__name__}"
        )
    return {name: part for name, part in parts.items() if isinstance(part, nn.Module)}


def bare(part: nn.Module) -> Any:  # noqa: ANN401
    """Return the base model inside torch.compile's and PEFT's wrappers."""
    part = getattr(part, "_orig_mod", part)
    return part.get_base_model() if isinstance(part, PeftModel) else part


def part_with(parts: Mapping[str, nn.Module], layers: Collection[str]) -> tuple[str, nn.Module]:
    """Return the name and the part that has most of the given layers."""

    def count(item: tuple[str, nn.Module]) -> int:
        return sum(name in layers for name, _ in bare(item[1]).named_modules())

    return max(parts.items(), key=count)


def weight_of(module: nn.Module | None) -> Float[Tensor, "out in"] | None:
    """Return the base weight of a layer, with or without an adapter; None if it has no matrix."""
    if isinstance(module, LoLDULayer):
        return module.base_weight()
    base = module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
    return None if base is None else weight_matrix(base)


def fingerprint_of(module: nn.Module | None) -> Float[Tensor, "3"]:
    """Return the three numbers that identify the base weight of a layer that has one."""
    if isinstance(module, LoLDULayer):
        return module.fingerprint()
    weight = weight_of(module)
    assert weight is not None
    return fingerprint(weight)


def adapted_layers(model_or_pipeline: Any) -> list[LoLDULayer]:  # noqa: ANN401
    """Return every wrapped layer, with or without an adapter at present.

    Raises:
        TypeError: If it is neither a model nor a pipeline.
    """
    found: dict[LoLDULayer, None] = {}
    for part in components(model_or_pipeline).values():
        _collect(part, found)
    return [*found]


def _collect(module: nn.Module, found: dict[LoLDULayer, None]) -> None:
    # A layer may hold a thousand adapters; visiting them would make every switch slow.
    if isinstance(module, LoLDULayer):
        found[module] = None
        _collect(module.base_layer, found)
    else:
        for child in module.children():
            _collect(child, found)


def text_layers(module: nn.Module) -> list[LoLDULayer]:
    """Return the adapted layers whose input is the text: keys and values of cross-attention.

    They read one state for each token, where the other layers of an image model read pixels.
    """
    if isinstance(module, LoLDULayer):
        return []
    reads_text = getattr(module, "is_cross_attention", False)
    own = [getattr(module, name, None) for name in ("to_k", "to_v")] if reads_text else []
    found = [layer for layer in own if isinstance(layer, LoLDULayer)]
    return found + [layer for child in module.children() for layer in text_layers(child)]


def layers_with(model: nn.Module, adapter_name: str) -> dict[str, LoLDULayer]:
    """Return the layers of a model that have the adapter, by their name in the base."""
    return {
        name.replace(".base_layer", ""): module
        for name, module in model.named_modules()
        if isinstance(module, LoLDULayer) and adapter_name in module.r
    }


def require_unmerged(layers: Iterable[LoLDULayer]) -> None:
    """Check that no adapter is merged into the weight of a layer.

    Raises:
        ConceptError: If one is merged.
    """
    for layer in layers:
        if layer.merged:
            raise ConceptError(
                f"{', '.join(layer.merged_adapters)} is merged into layer '{layer.layer_name}': "
                "unmerge it first"
            )
