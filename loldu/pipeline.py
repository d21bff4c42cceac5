"""Concepts of a model or a pipeline in use: how strong, mixed, one for every picture, unloaded."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from peft import PeftModel
from peft.functional import delete_adapter
from torch import nn

from .components import adapted_layers, bare, components
from .concept_file import ConceptError
from .layer import LoLDULayer
from .model import LoLDUModel


def unload_concept(model_or_pipeline: Any, adapter_name: str = "default") -> None:  # noqa: ANN401
    """Remove an adapter and free its vectors, and the factors that no other adapter uses.

    Layers that are left without an adapter become the plain layers they were, so that a model
    whose last concept goes is its base again. No other adapter becomes active in its place. A
    concept may be loaded again under the same name. It ends `set_concepts`.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        adapter_name: The adapter to remove.

    Raises:
        ConceptError: There is no such adapter, or adapters are merged into the base.
    """
    layers = _require(model_or_pipeline, [adapter_name])
    for part in components(model_or_pipeline).values():
        if any(adapter_name in layer.r for layer in adapted_layers(part)):
            _remove(part, adapter_name)
    for layer in layers:
        layer.rows = None


def set_strength(
    model_or_pipeline: Any,  # noqa: ANN401
    strength: float | int,
    adapter_name: str | None = None,
) -> None:
    """Set how much an adapter changes the base: 0 is the base, 1 as trained, beyond 1 more.

    ``delta_W`` is multiplied by the strength and no weight is touched; at 0 the output is the
    base's bit by bit. Modules that an adapter trains in full (modules_to_save) have no strength.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        strength: Any finite number; a negative one leads away from the concept.
        adapter_name: The adapter; None means all that are active.

    Raises:
        ConceptError: There is no such adapter, none is active, adapters are merged into the base,
            or the strength is not finite.
    """
    _require_finite(strength, adapter_name)
    layers = _require(model_or_pipeline, [] if adapter_name is None else [adapter_name])
    if adapter_name is None and not any(layer.adapters_in_use() for layer in layers):
        raise ConceptError("no concept is active here: pass the adapter_name of a loaded one")
    for layer in layers:
        for name in layer.adapters_in_use() if adapter_name is None else [adapter_name]:
            layer.set_scale(name, strength)


def mix(model_or_pipeline: Any, weights: Mapping[str, float | int]) -> None:  # noqa: ANN401
    """Make the named adapters the active ones, each at a strength of its own.

    ``delta_W = Σ_i w_i delta_W_i`` exactly, with every ``delta_W_i`` as trained; adapters that
    share factors cost what one costs. It ends `set_concepts`, and leaves which parameters are
    trained as it is.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        weights: Strength by adapter name, negative ones included. An empty mix is the base.

    Raises:
        ConceptError: There is no such adapter, one trains modules in full (modules_to_save),
            adapters are merged into the base, or a strength is not finite.
    """
    for name, weight in weights.items():
        _require_finite(weight, name)
    layers = _require(model_or_pipeline, weights)
    _require_diagonals_alone(model_or_pipeline, weights)
    for layer in layers:
        for name, weight in weights.items():
            layer.set_scale(name, weight)
    _activate(model_or_pipeline, layers, [*weights])


def set_concepts(
    model_or_pipeline: Any,  # noqa: ANN401
    concepts: Sequence[str | None] | None,
) -> None:
    """Give every picture of a batch a concept of its own, all drawn in one pass.

    Of N concepts, row i of a batch has concept ``i % N``, so that guidance, which shows the model
    the N pictures twice, is served as well: call the pipeline with N prompts. Concepts that share
    factors cost together what one costs. Strengths hold as set. `mix`, `load_concept`,
    `unload_concept` and PEFT's `set_adapter` end it, as None does.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        concepts: Adapter name for every picture, None for the base alone; or None for the active
            adapters on all pictures again.

    Raises:
        ConceptError: There is no such adapter, one trains modules in full (modules_to_save),
            adapters are merged into the base, or the list is empty.
    """
    rows = None
    if concepts is not None:
        if isinstance(concepts, str) or not concepts:
            raise ConceptError(
                f"set_concepts got {concepts!r}: pass a list with a concept's name or None for "
                "every picture"
            )
        rows = tuple(concepts)
    names = {name for name in rows or () if name is not None}
    layers = _require(model_or_pipeline, names)
    _require_diagonals_alone(model_or_pipeline, names)
    for layer in layers:
        layer.rows = rows


def _require(model_or_pipeline: Any, names: Collection[str]) -> list[LoLDULayer]:  # noqa: ANN401
    """Return the adapted layers, after checking that all named adapters are there to be used.

    Raises:
        ConceptError: One is not there, or adapters are merged.
    """
    layers = adapted_layers(model_or_pipeline)
    for name in names:
        if not any(name in layer.r for layer in layers):
            loaded = ", ".join(sorted({name for layer in layers for name in layer.r}))
            raise ConceptError(
                f"there is no concept named '{name}' here (loaded: {loaded or 'none'}): load it "
                "first, or check its name"
            )
    for layer in layers:
        if layer.merged:
            raise ConceptError(
                f"{', '.join(layer.merged_adapters)} is merged into layer '{layer.layer_name}': "
                "unmerge it first"
            )
    return layers


def _require_finite(strength: float | int, adapter_name: str | None) -> None:
    if not math.isfinite(strength):
        of = "" if adapter_name is None else f" of '{adapter_name}'"
        raise ConceptError(f"the strength{of} must be a finite number, got {strength}")


def _require_diagonals_alone(model_or_pipeline: Any, names: Collection[str]) -> None:  # noqa: ANN401
    for part in components(model_or_pipeline).values():
        for name in names:
            config = getattr(bare(part), "peft_config", {}).get(name)
            if modules := getattr(config, "modules_to_save", None):
                raise ConceptError(
                    f"adapter '{name}' also trains {', '.join(modules)} in full "
                    "(modules_to_save), which cannot be mixed: make it the only active one with "
                    "set_adapter"
                )


def _activate(model_or_pipeline: Any, layers: list[LoLDULayer], names: list[str]) -> None:  # noqa: ANN401
    for layer in layers:
        layer.activate(names)
    for part in components(model_or_pipeline).values():
        model: Any = getattr(part, "_orig_mod", part)
        if isinstance(model, PeftModel) and isinstance(model.base_model, LoLDUModel):
            tuner: Any = model.base_model
            tuner.active_adapter = names


def _remove(part: nn.Module, adapter_name: str) -> None:
    layers, model = adapted_layers(part), bare(part)
    # Otherwise PEFT makes another adapter active.
    _activate(part, layers, [n for n in layers[0].active_adapters if n != adapter_name])
    delete_adapter(model, adapter_name, LoLDUModel.prefix, LoLDULayer)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoLDULayer) and not module.r:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base_layer)
    _forget(getattr(part, "_orig_mod", part), model.peft_config, adapter_name)


def _forget(part: Any, configs: dict[str, Any], adapter_name: str) -> None:  # noqa: ANN401
    """Drop an adapter's configuration, but a PeftModel's last one: PEFT cannot run it without."""
    if isinstance(part, PeftModel):
        if len(configs) > 1:
            del configs[adapter_name]
            if part.active_adapter == adapter_name:
                part.active_adapter = next(iter(configs))
        return
    del configs[adapter_name]
    if not configs:
        del part.peft_config
        if hasattr(part, "_hf_peft_config_loaded"):
            part._hf_peft_config_loaded = False
