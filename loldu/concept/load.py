"""Load a concept file as an adapter of a model or a pipeline."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
from typing import Any

from loldu.adapter.components import components
from loldu.adapter.injection import LayerDelta, activate, add_adapter, require_free
from loldu.concept.format import Concept, reason_of, require_finite
from loldu.concept.route import route_concepts, words_after_load, words_of
from loldu.concept.routed import reads_prompts
from loldu.concept.verify import read_verified
from loldu.errors import ConceptError


def load_concept(
    model_or_pipeline: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
    adapter_name: str = "default",
    strength: float | int = 1.0,
    *,
    words: str | None = None,
    route: bool = True,
) -> Concept:
    """Load a concept file as an adapter, and make it the active one.

    Everything is checked before anything is changed: a refused file leaves the model as it was.

    In a pipeline the concept acts only in pictures whose prompt contains its words, as
    `route_concepts` describes; the trainer saves them in the file ("sks"). A concept without words
    acts in every picture, and so does any concept of a model that is called without prompts.

    Args:
        model_or_pipeline: A PeftModel, a model, or a pipeline.
        path: The concept file; or, for a single model or component, a folder that PEFT's
            `save_pretrained` wrote. Such a folder identifies its base less precisely: only by the
            diagonals of the weights, to some per cent.
        adapter_name: Name for the adapter; it must not be taken.
        strength: Factor on the change of the weights.
        words: The words that call the concept, such as "sks dog"; the file's token by default.
        route: Whether words call the concept; False lets it act in every picture, for a style.

    Raises:
        ConceptError: If the file is not a sound concept or was made for another base, the name is
            taken, adapters are merged into the base, or the strength is not finite.
    """
    require_finite(strength, adapter_name)
    if words is not None and not (route and reads_prompts(model_or_pipeline)):
        raise ConceptError("words call a concept in a pipeline with prompts: leave out words here")
    concept, targets = read_verified(model_or_pipeline, path)
    for part in targets.values():
        require_free(part, adapter_name)
    called_by = (words or words_of(concept, model_or_pipeline)) if route else None
    all_words = words_after_load(model_or_pipeline, adapter_name, called_by)
    deltas: dict[str, dict[str, LayerDelta]] = {component: {} for component in targets}
    factorizations: dict[str, str] = {}
    for y in concept.layers:
        deltas[y.component][y.name] = LayerDelta(y.delta, y.pivots, strength)
        factorizations[y.component] = y.factorization
    try:
        add_adapter(targets, adapter_name, deltas, factorizations)
    except ValueError as error:
        raise ConceptError(
            f"{path} does not fit this base in its dtype ({reason_of(error)}): load the base in "
            "the dtype it was trained on"
        ) from error
    for part in components(model_or_pipeline).values():
        activate(part, adapter_name)
    if all_words is not None:
        route_concepts(model_or_pipeline, all_words)
    return concept
