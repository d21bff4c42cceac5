"""Truncate a trained concept to fewer directions: the nearest such concept and its error."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from loldu.adapter.components import bare, components, layers_with
from loldu.adapter.diagonal import delta_norm
from loldu.adapter.injection import LayerDelta, activate, add_adapter, require_free
from loldu.adapter.layer import LoLDULayer
from loldu.concept.save import require_diagonals_alone
from loldu.errors import ConceptError


@dataclass(frozen=True)
class LayerCut:
    """Result of a truncation in one layer.

    Attributes:
        component: The pipeline's component, or "model" for a model on its own.
        name: The layer's name in its component.
        delta: The new change of the diagonal, r numbers.
        norm: ``‖delta_W‖_F`` before.
        lost: ``‖delta_W - delta_W'‖_F``.
    """

    component: str
    name: str
    delta: Float[Tensor, " r"]
    norm: float
    lost: float

    @property
    def error(self) -> float:
        """The relative error, ``‖delta_W - delta_W'‖_F / ‖delta_W‖_F``."""
        return _relative([self])


@dataclass(frozen=True)
class Truncation:
    """Result of a truncation, layer by layer."""

    layers: tuple[LayerCut, ...]

    @property
    def total(self) -> float:
        """The relative error of all changes of weights together."""
        return _relative(self.layers)

    def of(self, component: str) -> "Truncation":
        """Return the part in one component of a pipeline."""
        return Truncation(tuple(cut for cut in self.layers if cut.component == component))

    def summary(self) -> dict[str, tuple[list[int], float]]:
        """Return the rank of each layer and the relative error, by component and in total."""
        components = dict.fromkeys(cut.component for cut in self.layers)
        parts = {**{name: self.of(name) for name in components}, "total": self}
        return {
            name: ([cut.delta.numel() for cut in part.layers], part.total)
            for name, part in parts.items()
        }


def nearest(
    delta: Float[Tensor, " k"], metric: Float[Tensor, "k k"], r: int
) -> Float[Tensor, " r"]:
    """Return the delta of the first r directions whose weight is nearest to that of all k.

    The minimum of ``‖B diag(delta) A - B_r diag(delta') A_r‖_F`` solves ``G11 delta' = G1 delta``,
    with ``G = (Bᵀ B) ∘ (A Aᵀ)``: the kept directions replace part of the cut ones,

        delta' = delta_1 + G11⁺ G12 delta_2.

    Dropped directions make G11 singular, hence the pseudo-inverse.

    Args:
        delta: The change of the diagonal, in float64.
        metric: G, in float64.
        r: How many directions to keep.
    """
    cut = metric[:r, r:] @ delta[r:]
    return delta[:r] + torch.linalg.pinv(metric[:r, :r], hermitian=True) @ cut


@torch.no_grad()
def truncate(
    model_or_pipeline: Any,  # noqa: ANN401
    r: int | None = None,
    adapter_name: str = "default",
    new_name: str = "truncated",
    *,
    max_error: float | None = None,
) -> Truncation:
    """Add and activate the adapter of r directions per layer that is nearest to another.

    Factors are nested, so the first r directions are those of an adapter of rank r, and the new
    adapter shares the factors of the old one and has its strength. The old adapter stays loaded:
    `unload_concept` frees it. `save_concept` writes the new one.

    Args:
        model_or_pipeline: A PeftModel, a model with an injected adapter, or a pipeline.
        r: How many directions to keep in every layer; layers that have no more stay as they are.
        adapter_name: The adapter to truncate.
        new_name: Name for the truncated one; it must not be taken.
        max_error: Instead of r: take the smallest rank in every layer whose relative error is at
            most this.

    Returns:
        The exact errors of the new adapter, its rounding to float32 included.

    Raises:
        ConceptError: If there is no such adapter, it also trains modules in full, the new name is
            taken, or not exactly one of r and max_error is given.
    """
    check_size(r, max_error)
    parts = components(model_or_pipeline)
    found = {
        c: layers for c, part in parts.items() if (layers := layers_with(bare(part), adapter_name))
    }
    if not found:
        raise ConceptError(
            f"there is no LoLDU adapter named '{adapter_name}' to truncate: check adapter_name"
        )
    for component in found:
        require_diagonals_alone(bare(parts[component]), adapter_name)
        require_free(parts[component], new_name)
    cuts = [
        _cut(component, name, layer, adapter_name, r, max_error)
        for component, layers in found.items()
        for name, layer in layers.items()
    ]
    result = Truncation(tuple(cuts))
    deltas: dict[str, dict[str, LayerDelta]] = {component: {} for component in found}
    factorizations: dict[str, str] = {}
    for cut in result.layers:
        layer = found[cut.component][cut.name]
        pivots = layer.factors_of(adapter_name).pivots_of(cut.delta.numel())
        strength = layer.strength[adapter_name]
        deltas[cut.component][cut.name] = LayerDelta(cut.delta, pivots, strength)
        factorizations[cut.component] = layer.diagonal(adapter_name).factorization
    add_adapter(parts, new_name, deltas, factorizations)
    for part in parts.values():
        activate(part, new_name)
    return result


def check_size(r: int | None, max_error: float | None) -> None:
    """Check the size of a truncation.

    Raises:
        ConceptError: If not exactly one of the two is given, or it is out of range.
    """
    if (r is None) == (max_error is None):
        raise ConceptError("truncate needs either r or max_error: give one of them")
    if r is not None and r < 1:
        raise ConceptError(f"r must be a positive integer, got {r}")
    if max_error is not None and not max_error >= 0:
        raise ConceptError(f"max_error must be a number from 0 on, got {max_error}")


def _cut(
    component: str,
    name: str,
    layer: LoLDULayer,
    adapter_name: str,
    r: int | None,
    max_error: float | None,
) -> LayerCut:
    """Cut one layer's delta to r directions, or to as few as the error allows."""
    shared, whole = layer.factors_of(adapter_name), layer.r[adapter_name]
    metric, gain = shared.metric[:whole, :whole].cpu(), shared.gain[:whole].double().cpu()
    delta = layer.diagonal(adapter_name).delta().double().cpu() * gain
    norm = float(delta_norm(delta, metric))
    if not math.isfinite(norm):
        raise ConceptError(f"the delta of layer '{name}' is not finite: training diverged")

    def cut_to(rank: int) -> LayerCut:
        kept = (nearest(delta, metric, rank) / gain[:rank]).float()
        lost = delta - F.pad(kept * gain[:rank], (0, whole - rank))
        return LayerCut(component, name, kept, norm, float(delta_norm(lost, metric)))

    # A layer without any nonzero pivot could not be loaded.
    least = int(shared.diagonal[:whole].nonzero()[0]) + 1
    if r is not None:
        if r < least:
            raise ConceptError(
                f"the first {r} pivots of layer '{name}' are zero: keep at least {least} directions"
            )
        return cut_to(min(r, whole))
    low, high = least, whole
    while low < high:  # the error never grows with the rank
        middle = (low + high) // 2
        if max_error is not None and cut_to(middle).error <= max_error:
            high = middle
        else:
            low = middle + 1
    return cut_to(high)


def _relative(cuts: Iterable[LayerCut]) -> float:
    cuts = tuple(cuts)
    norm = math.hypot(*(cut.norm for cut in cuts))
    return math.hypot(*(cut.lost for cut in cuts)) / norm if norm else 0.0
