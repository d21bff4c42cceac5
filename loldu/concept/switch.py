"""Concepts of a model or a pipeline in use: how strong, mixed, one for every picture, unloaded."""

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
            remove(part, adapter_name)
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
    require_finite(strength, adapter_name)
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
        require_finite(weight, name)
    layers = _require(model_or_pipeline, weights)
    _require_mixable(model_or_pipeline, weights)
    for layer in layers:
        for name, weight in weights.items():
            layer.set_scale(name, weight)
    make_active(model_or_pipeline, layers, [*weights])


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
    _require_mixable(model_or_pipeline, names)
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
