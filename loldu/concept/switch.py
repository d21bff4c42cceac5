"""Switch between loaded concepts: strength, mixture, one concept per picture, unloading."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping, Sequence
from typing import Any

from loldu.adapter.components import adapted_layers, components
from loldu.adapter.injection import make_active, remove, require_loaded, require_mixable
from loldu.adapter.layer import set_rows
from loldu.adapter.mixing import Mixture, Rows
from loldu.concept.format import require_finite
from loldu.concept.route import forget_words, route_concepts, routed_words
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
    layers = require_loaded(model_or_pipeline, [adapter_name])
    for part in components(model_or_pipeline).values():
        if any(adapter_name in layer.r for layer in adapted_layers(part)):
            remove(part, adapter_name)
    set_rows(layers, None)
    forget_words(model_or_pipeline, adapter_name)


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
        adapter_name: The adapter; None means all that words call or that are active.

    Raises:
        ConceptError: If there is no such adapter, none is active, adapters are merged into the
            base, or the strength is not finite.
    """
    require_finite(strength, adapter_name)
    layers = require_loaded(model_or_pipeline, [] if adapter_name is None else [adapter_name])
    named = [*routed_words(model_or_pipeline)] if adapter_name is None else [adapter_name]
    if not named and not any(layer.adapters_in_use() for layer in layers):
        raise ConceptError("no concept is active here: pass the adapter_name of a loaded one")
    for layer in layers:
        for name in named or layer.adapters_in_use():
            layer.set_scale(name, strength)


def mix(model_or_pipeline: Any, weights: Mapping[str, float | int]) -> None:  # noqa: ANN401
    """Make the named adapters the active ones, each at its own strength.

    ``delta_W = Σ_i w_i delta_W_i`` exactly, with every ``delta_W_i`` as trained; adapters that
    share factors cost no more than one. The effect of `set_concepts` and of `route_concepts` ends.
    The trained parameters stay the same.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        weights: Strength by adapter name, negative ones included. An empty mix is the base.

    Raises:
        ConceptError: If there is no such adapter, one trains modules in full (modules_to_save),
            adapters are merged into the base, or a strength is not finite.
    """
    for name, weight in weights.items():
        require_finite(weight, name)
    layers = require_loaded(model_or_pipeline, weights)
    require_mixable(model_or_pipeline, weights)
    for layer in layers:
        layer.switch_on()
        for name, weight in weights.items():
            layer.set_scale(name, weight)
    make_active(model_or_pipeline, layers, [*weights])
    route_concepts(model_or_pipeline, None)


def set_concepts(
    model_or_pipeline: Any,  # noqa: ANN401
    concepts: Sequence[Mixture] | None,
) -> None:
    """Give every picture of a batch its own concepts; one pass draws all of them.

    Call the pipeline with N prompts for N pictures. Row i of a batch has the concepts ``i % N``,
    which also holds with guidance, where the batch contains the N pictures twice. Concepts that
    share factors cost no more than one. A compiled model needs no new graph for other rows of the
    same concepts. The effect ends with None, `mix`, `load_concept`, `unload_concept` or PEFT's
    `set_adapter`.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        concepts: For every picture an adapter's name, several with a factor on the strength of
            each (``{"dog": 0.7, "toy": 0.4}``), or None for the base alone. None instead of a list
            goes back to what was before: the words of the prompts, or the active adapters.

    Raises:
        ConceptError: If there is no such adapter, one trains modules in full (modules_to_save),
            adapters are merged into the base, a factor is not finite, or the list is empty.
    """
    if concepts is not None and (isinstance(concepts, str) or not concepts):
        raise ConceptError(
            f"set_concepts got {concepts!r}: pass a list with a concept's name or None for every "
            "picture"
        )
    for mixture in concepts or ():
        for name, factor in mixture.items() if isinstance(mixture, Mapping) else ():
            require_finite(factor, name)
    rows = None if concepts is None else Rows.of(concepts)
    names = () if rows is None else rows.names
    layers = require_loaded(model_or_pipeline, names)
    require_mixable(model_or_pipeline, names)
    set_rows(layers, rows)
    if rows is not None:
        for layer in layers:
            layer.switch_on()
