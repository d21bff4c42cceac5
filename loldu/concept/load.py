"""Load a concept file as an adapter of a model or a pipeline."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
from typing import Any

from loldu.adapter.components import components
from loldu.adapter.injection import LayerDelta, activate, add_adapter, require_free
from loldu.concept.format import Concept, reason_of, require_finite
from loldu.concept.verify import read_verified
from loldu.errors import ConceptError


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
            `save_pretrained` wrote. Such a folder identifies its base less precisely: only by the
            diagonals of the weights, to some per cent.
        adapter_name: Name for the adapter; it must not be taken.
        strength: Factor on the change of the weights.

    Raises:
        ConceptError: If the file is not a sound concept or was made for another base, the name is
            taken, adapters are merged into the base, or the strength is not finite.
    """
    require_finite(strength, adapter_name)
    concept, targets = read_verified(model_or_pipeline, path)
    for part in targets.values():
        require_free(part, adapter_name)
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
    return concept
