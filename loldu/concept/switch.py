"""Switch between loaded concepts: strength, mixture, one concept per picture, unloading."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from loldu.adapter.components import adapted_layers, bare, components, require_unmerged
from loldu.adapter.injection import make_active, remove
from loldu.adapter.layer import LoLDULayer
from loldu.concept.format import require_finite
from loldu.errors import ConceptError


def unload_concept(model_or_pipeline: Any, adapter_name: str = "default") -> None:  # noqa: ANN401
    """Remove an adapter and free its vectors, and the factors that no other adapter uses.

    Layers without an adapter become plain layers again, so that a model without concepts is its
    base again. No other adapter becomes active instead. The name can be used again. The effect of
    `set_concepts` ends.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        adapter_name: The adapter to remove.

    Raises:
        ConceptError: If there is no such adapter, or adapters are merged into the base.
    """
    layers = _require(model_or_pipeline, [adapter_name])
    for part in components(model_or_pipeline).values():
        if any(adapter_name in layer.r for layer in adapted_layers(part)):
            remove(part, adapter_name)
    for layer in layers:
        layer.rows = None


def set_strength(
    model_or_pipeline: Any,  # noqa: ANN401
    strength: float | int,
    adapter_name: str | None = None,
) -> None:
    """Set the strength of an adapter: 0 is the base, 1 is as trained, more than 1 exaggerates.

    ``delta_W`` is multiplied by the strength and no weight changes; at 0 the output equals the
    base's bit by bit. Modules that an adapter trains in full (modules_to_save) have no strength.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        strength: A finite number; a negative one leads away from the concept.
        adapter_name: The adapter; None means all active adapters.

    Raises:
        ConceptError: If there is no such adapter, none is active, adapters are merged into the
            base, or the strength is not finite.
    """
    require_finite(strength, adapter_name)
    layers = _require(model_or_pipeline, [] if adapter_name is None else [adapter_name])
    if adapter_name is None and not any(layer.adapters_in_use() for layer in layers):
        raise ConceptError("no concept is active here: pass the adapter_name of a loaded one")
    for layer in layers:
        for name in layer.adapters_in_use() if adapter_name is None else [adapter_name]:
            layer.set_scale(name, strength)


def mix(model_or_pipeline: Any, weights: Mapping[str, float | int]) -> None:  # noqa: ANN401
    """Make the named adapters the active ones, each at its own strength.

    ``delta_W = Σ_i w_i delta_W_i`` exactly, with every ``delta_W_i`` as trained; adapters that
    share factors cost no more than one. The effect of `set_concepts` ends. The trained parameters
    stay the same.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        weights: Strength by adapter name, negative ones included. An empty mix is the base.

    Raises:
        ConceptError: If there is no such adapter, one trains modules in full (modules_to_save),
            adapters are merged into the base, or a strength is not finite.
    """
    for name, weight in weights.items():
        require_finite(weight, name)
    layers = _require(model_or_pipeline, weights)
    _require_mixable(model_or_pipeline, weights)
    for layer in layers:
        layer.switch_on()
        for name, weight in weights.items():
            layer.set_scale(name, weight)
    make_active(model_or_pipeline, layers, [*weights])


def set_concepts(
    model_or_pipeline: Any,  # noqa: ANN401
    concepts: Sequence[str | None] | None,
) -> None:
    """Give every picture of a batch its own concept; one pass draws all of them.

    Call the pipeline with N prompts for N concepts. Row i of a batch has concept ``i % N``, which
    also holds with guidance, where the batch contains the N pictures twice. Concepts that share
    factors cost no more than one. Strengths stay the same. The effect ends with None, `mix`,
    `load_concept`, `unload_concept` or PEFT's `set_adapter`.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        concepts: Adapter name for every picture, None for the base alone. None instead of a list
            uses the active adapters for all pictures again.

    Raises:
        ConceptError: If there is no such adapter, one trains modules in full (modules_to_save),
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
    _require_mixable(model_or_pipeline, names)
    for layer in layers:
        layer.rows = rows
        if rows is not None:
            layer.switch_on()


def _require(model_or_pipeline: Any, names: Collection[str]) -> list[LoLDULayer]:  # noqa: ANN401
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


def _require_mixable(model_or_pipeline: Any, names: Collection[str]) -> None:  # noqa: ANN401
    for part in components(model_or_pipeline).values():
        for name in names:
            config = getattr(bare(part), "peft_config", {}).get(name)
            if modules := getattr(config, "modules_to_save", None):
                raise ConceptError(
                    f"adapter '{name}' also trains {', '.join(modules)} in full "
                    "(modules_to_save), which cannot be mixed: make it the only active one with "
                    "set_adapter"
                )
