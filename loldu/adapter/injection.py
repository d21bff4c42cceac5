"""Attach or remove an adapter with given deltas."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import warnings
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from peft import PeftModel, inject_adapter_in_model
from peft.functional import delete_adapter
from torch import Tensor, nn

from loldu.adapter.components import adapted_layers, bare, components, require_unmerged
from loldu.adapter.config import LoLDUConfig
from loldu.adapter.layer import LoLDULayer
from loldu.adapter.model import LoLDUModel
from loldu.adapter.uncalled import leave_readers
from loldu.errors import ConceptError


class LayerDelta(NamedTuple):
    """The change of one layer by an adapter.

    Attributes:
        delta: Change of the diagonal.
        pivots: Pivots of the factors; None for a factorization without pivots.
        strength: Factor on the change.
    """

    delta: Float[Tensor, " r"]
    pivots: Int[Tensor, " r"] | Int[Tensor, "2 r"] | None
    strength: float | int


def require_free(part: nn.Module, adapter_name: str) -> None:
    """Check that an adapter of this name can be added to a part.

    Raises:
        ConceptError: If it cannot.
    """
    if not adapter_name or "." in adapter_name or hasattr(nn.ModuleDict(), adapter_name):
        raise ConceptError(
            f"'{adapter_name}' cannot name an adapter: use letters, digits, '-' and '_'"
        )
    if adapter_name in getattr(bare(part), "peft_config", {}) and not _is_shell(part):
        raise ConceptError(
            f"an adapter named '{adapter_name}' is already loaded: choose another adapter_name"
        )
    require_unmerged(adapted_layers(part))
    if isinstance(part, PeftModel) and not isinstance(part.base_model, LoLDUModel):
        raise ConceptError(
            "the model is a PeftModel of another method: pass its base model, or a fresh one"
        )


def require_loaded(model_or_pipeline: Any, names: Collection[str]) -> list[LoLDULayer]:  # noqa: ANN401
    """Return the adapted layers, after a check that all named adapters are loaded.

    Raises:
        ConceptError: If one is not loaded, or adapters are merged.
    """
    layers = adapted_layers(model_or_pipeline)
    for name in names:
        if not any(name in layer.r for layer in layers):
            loaded = ", ".join(sorted({name for layer in layers for name in layer.r}))
            raise ConceptError(
                f"there is no concept named '{name}' here (loaded: {loaded or 'none'}): load it "
                "first, or check its name"
            )
    require_unmerged(layers)
    return layers


def require_mixable(model_or_pipeline: Any, names: Collection[str]) -> None:  # noqa: ANN401
    """Check that adapters can act on single rows of a batch, or in a mixture.

    Raises:
        ConceptError: If one trains modules in full.
    """
    for part in components(model_or_pipeline).values():
        for name in names:
            config = getattr(bare(part), "peft_config", {}).get(name)
            if modules := getattr(config, "modules_to_save", None):
                raise ConceptError(
                    f"adapter '{name}' also trains {', '.join(modules)} in full "
                    "(modules_to_save), which cannot be mixed: make it the only active one with "
                    "set_adapter"
                )


def add_adapter(
    parts: Mapping[str, nn.Module],
    adapter_name: str,
    deltas: Mapping[str, Mapping[str, LayerDelta]],
    factorizations: Mapping[str, str],
) -> None:
    """Add an adapter with given deltas to parts of a pipeline: to all the layers, or to none.

    Args:
        parts: Models by component.
        adapter_name: Name of the adapter, not taken in any part.
        deltas: Changes by component and name of the layer.
        factorizations: Name of the factorization, by component.

    Raises:
        ValueError: If the weight of a layer has no factors at the pivots.
    """
    try:
        for component, layers in deltas.items():
            part = parts[component]
            ranks = {name: layer.delta.numel() for name, layer in layers.items()}
            _inject(part, adapter_name, ranks, factorizations[component])
            for name, layer in layers.items():
                module = bare(part).get_submodule(name)
                module.load_delta(adapter_name, layer.delta, layer.pivots)
                module.set_scale(adapter_name, layer.strength)
    except BaseException:
        for component in deltas:
            remove(parts[component], adapter_name)
        raise


def _inject(
    part: nn.Module, adapter_name: str, ranks: Mapping[str, int], factorization: str
) -> None:
    """Add empty adapters to exactly the named layers, each with its own rank.

    If all of these layers are wrapped already, PEFT's search for them is skipped: it would go
    through all existing adapters.
    """
    config = LoLDUConfig.for_deltas(ranks, factorization)
    model = bare(part)
    layers = {name: model.get_submodule(name) for name in ranks}
    if all(isinstance(layer, LoLDULayer) for layer in layers.values()):
        if not hasattr(model, "peft_config"):
            # `delete_adapters` of diffusers leaves the layers wrapped, but no configurations.
            model.peft_config = {}
        model.peft_config[adapter_name] = config
        with torch.device("meta"):
            for name, layer in layers.items():
                layer.update_layer(adapter_name, ranks[name], 1.0, config)
    elif isinstance(part, PeftModel):
        left_behind = list(part.peft_config) if _is_shell(part) else []
        part.add_adapter(adapter_name, config, low_cpu_mem_usage=True)
        if left_behind:
            part.active_adapter = adapter_name
        for name in left_behind:
            if name != adapter_name:
                del part.peft_config[name]
    else:
        with warnings.catch_warnings():
            # PEFT warns about the second adapter of a model, which is intended here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            inject_adapter_in_model(config, bare(part), adapter_name, low_cpu_mem_usage=True)
    if not isinstance(part, PeftModel) and hasattr(bare(part), "_hf_peft_config_loaded"):
        bare(part)._hf_peft_config_loaded = True


def activate(part: nn.Module, adapter_name: str) -> None:
    """Make an adapter the only active one of a part, for inference, also after `disable_lora`."""
    part = getattr(part, "_orig_mod", part)
    if isinstance(part, PeftModel) and adapter_name in part.peft_config:
        part.set_adapter(adapter_name, inference_mode=True)
    for layer in adapted_layers(part):
        layer.set_adapter(adapter_name, inference_mode=True)
        layer.switch_on()


def make_active(model_or_pipeline: Any, layers: list[LoLDULayer], names: list[str]) -> None:  # noqa: ANN401
    """Make adapters the active ones of layers; the trained parameters stay the same."""
    for layer in layers:
        layer.activate(names)
    for part in components(model_or_pipeline).values():
        model: Any = getattr(part, "_orig_mod", part)
        if isinstance(model, PeftModel) and isinstance(model.base_model, LoLDUModel):
            tuner: Any = model.base_model
            tuner.active_adapter = names


def remove(part: nn.Module, adapter_name: str) -> None:
    """Remove an adapter from a part; layers without an adapter become plain layers again."""
    layers, model = adapted_layers(part), bare(part)
    if not any(adapter_name in layer.r for layer in layers):
        getattr(model, "peft_config", {}).pop(adapter_name, None)
        return
    # Otherwise PEFT would make another adapter active.
    make_active(part, layers, [n for n in layers[0].active_adapters if n != adapter_name])
    delete_adapter(model, adapter_name, LoLDUModel.prefix, LoLDULayer)
    for name, module in list(model.named_modules()):
        if isinstance(module, LoLDULayer) and not module.r:
            place, _, child = name.rpartition(".")
            parent = model.get_submodule(place)
            setattr(parent, child, module.base_layer)
            leave_readers(parent)
    _forget(getattr(part, "_orig_mod", part), model.peft_config, adapter_name)


def _forget(part: Any, configs: dict[str, Any], adapter_name: str) -> None:  # noqa: ANN401
    """Drop an adapter's configuration, except the last one of a PeftModel, which PEFT needs."""
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


def _is_shell(part: nn.Module) -> bool:
    """Return whether all adapters of a PeftModel were unloaded; one configuration remains."""
    return isinstance(part, PeftModel) and not adapted_layers(part)
