"""Replace a loaded concept by another: new numbers in the same tensors."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import os
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from loldu.adapter.base_check import any_base
from loldu.adapter.components import adapted_layers, bare
from loldu.adapter.layer import LoLDULayer
from loldu.concept.format import Concept, ConceptLayer
from loldu.concept.route import route_concepts, routed_words, words_of
from loldu.concept.verify import read_verified
from loldu.errors import ConceptError


@torch.no_grad()
def hotswap_concept(
    model_or_pipeline: Any,  # noqa: ANN401
    path: str | os.PathLike[str],
    adapter_name: str = "default",
) -> Concept:
    """Replace the content of a loaded adapter by that of a concept file.

    Only numbers change, so that a compiled model needs no new graph. With a concept of a smaller
    rank, or of fewer layers, the rest of the adapter becomes zero. The active adapters and their
    strengths stay the same. In a pipeline that routes prompts, the words of the new file count.
    Everything is checked before anything is changed.

    Args:
        model_or_pipeline: A PeftModel, a model, or a pipeline.
        path: The concept file, or a folder as for `load_concept`.
        adapter_name: The adapter to replace.

    Raises:
        ConceptError: If the file is not a sound concept or was made for another base, there is no
            such adapter, or the concept has layers, directions or pivots that the adapter lacks.
    """
    concept, targets = read_verified(model_or_pipeline, path)
    places = [y for y in adapted_layers(model_or_pipeline) if adapter_name in y.r]
    if not places:
        raise ConceptError(
            f"there is no concept named '{adapter_name}' here to swap: load it with load_concept"
        )
    contents: dict[LoLDULayer, ConceptLayer] = {}
    for layer in concept.layers:
        module = bare(targets[layer.component]).get_submodule(layer.name)
        _check(layer, module, adapter_name, path)
        contents[module] = layer
    for place in places:
        content, diagonal = contents.get(place), place.diagonal(adapter_name)
        r, delta = place.r[adapter_name], torch.zeros(0) if content is None else content.delta
        diagonal.set_delta(F.pad(delta, (0, r - delta.numel())).to(diagonal.dz.device))
        if content is not None and content.pivots is not None and diagonal.pivots is not None:
            diagonal.pivots[..., : delta.numel()].copy_(content.pivots)
        with any_base():  # the fingerprints have been compared
            place.follow_pivots()
    if adapter_name in (known := routed_words(model_or_pipeline)):
        words = words_of(concept, model_or_pipeline)
        route_concepts(model_or_pipeline, {**known, adapter_name: words})
    return concept


def _check(
    layer: ConceptLayer,
    module: nn.Module,
    adapter_name: str,
    path: str | os.PathLike[str],
) -> None:
    if not isinstance(module, LoLDULayer) or adapter_name not in module.r:
        problem = f"changes layer '{layer.name}', which '{adapter_name}' leaves alone"
    elif module.merged:
        problem = f"is to replace '{adapter_name}', which is merged into layer '{layer.name}'"
    elif layer.delta.numel() > (r := module.r[adapter_name]):
        problem = f"has {layer.delta.numel()} directions in layer '{layer.name}', and there are {r}"
    elif layer.factorization != module.diagonal(adapter_name).factorization or not _leads(
        layer, module.diagonal(adapter_name).pivots
    ):
        problem = f"has other directions in layer '{layer.name}' than '{adapter_name}'"
    else:
        return
    raise ConceptError(f"{path} {problem}: load it under another name with load_concept")


def _leads(layer: ConceptLayer, pivots: Tensor | None) -> bool:
    """Return whether pivots of a concept can replace those of an adapter of at least its rank."""
    if layer.pivots is None or pivots is None or layer.pivots.shape == pivots.shape:
        return True
    return torch.equal(pivots[..., : layer.delta.numel()].cpu().long(), layer.pivots.long())
