"""The adapted layer: one diagonal per adapter between factors that all its adapters share."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from .config import LoLDUConfig
from .diagonal import (
    LoLDUDiagonal,
    delta_norm,
    initial_diagonal,
    layer_generator,
    projection_factor,
)
from .factorization import Pivoting, ldu, svd
from .functional import adapted_linear, factored_update
from .shared_factors import SharedFactors


class LoLDULayer(BaseTunerLayer):
    """Adapter state of one linear layer, by adapter name."""

    adapter_layer_names = ("loldu_diagonal",)
    other_param_names = ("r", "strength", "factors")

    def __init__(self, base_layer: nn.Module, layer_name: str) -> None:
        """Wrap a base layer; its name is for messages and for seeding."""
        self.base_layer = base_layer
        self.layer_name = layer_name
        self.out_features, self.in_features = self.linear.weight.shape
        self.loldu_diagonal = nn.ModuleDict()
        self.r: dict[str, int] = {}
        self.strength: dict[str, float] = {}
        self.factors: dict[str, SharedFactors] = {}
        self.merged_adapters: list[str] = []
        self._disable_adapters = False
        self._weight_before_merge: Tensor | None = None
        self._weight_token = self._current_weight_token()

    @property
    def linear(self) -> nn.Linear:
        """The layer of the base model, also under another method's wrapper."""
        base = self.get_base_layer()
        assert isinstance(base, nn.Linear)
        return base

    def diagonal(self, adapter_name: str) -> LoLDUDiagonal:
        """Return what an adapter trains in this layer."""
        diagonal = self.loldu_diagonal[adapter_name]
        assert isinstance(diagonal, LoLDUDiagonal)
        return diagonal

    def base_weight(self) -> Float[Tensor, "out in"]:
        """Return the weight of the base model, also while adapters are merged into the layer."""
        merged_from = self._weight_before_merge
        return self.linear.weight.data if merged_from is None else merged_from

    def update_layer(self, adapter_name: str, r: int, sigma_0: float, config: LoLDUConfig) -> None:
        """Add an adapter of rank r (clamped to the layer) that starts at the base model.

        Raises:
            ValueError: The base weight is zero or not finite.
        """
        rank = min(r, self.in_features, self.out_features)
        weight = self.base_weight()
        diagonal = LoLDUDiagonal(
            rank,
            sigma_0,
            pivoting=config.pivoting if config.factorization == "ldu" else None,
            train_scale=config.train_scale,
            perturbs=config.residual == "perturb",
        )
        if weight.is_meta or diagonal.dz.is_meta:
            # A checkpoint is about to bring the values; there is nothing to factor yet.
            diagonal.to("meta")
        else:
            shared = self._share(rank, diagonal.pivoting, None)
            self._start(diagonal.to(weight.device), shared, config)
            self.factors[adapter_name] = shared
        self.r[adapter_name] = rank
        self.strength[adapter_name] = 1.0
        self.loldu_diagonal[adapter_name] = diagonal
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.no_grad()
    def _start(self, diagonal: LoLDUDiagonal, shared: SharedFactors, config: LoLDUConfig) -> None:
        d = shared.diagonal[: diagonal.dz.numel()]
        generator = layer_generator(config.seed, self.layer_name)
        z_ref = initial_diagonal(config.diagonal_init, d, generator)
        diagonal.z_ref.copy_(z_ref)
        if diagonal.perturbation is not None:
            diagonal.perturbation.copy_(z_ref - d)
        if diagonal.pivots is not None and shared.pivots is not None:
            diagonal.pivots.copy_(shared.pivots[..., : d.numel()])
        if not config.init_weights:
            spread = 0.2 * d.square().mean().sqrt()
            diagonal.dz.copy_(spread.cpu() * torch.randn(d.shape, generator=generator))

    @torch.no_grad()
    def load_delta(
        self, adapter_name: str, delta: Float[Tensor, " r"], pivots: Tensor | None
    ) -> None:
        """Make an adapter (of sigma_0 = 1) a given delta on the factors at the given pivots."""
        diagonal = self.diagonal(adapter_name).to_empty(device=self.base_weight().device)
        for tensor in (*diagonal.parameters(), *diagonal.buffers()):
            tensor.zero_()
        diagonal.dz.copy_(delta)
        if diagonal.pivots is not None and pivots is not None:
            diagonal.pivots.copy_(pivots)
        self.factors[adapter_name] = self._share(delta.numel(), diagonal.pivoting, diagonal.pivots)

    def factors_of(self, adapter_name: str) -> SharedFactors:
        """Return an adapter's factors, computing them if the base's dtype or weight changed."""
        if adapter_name not in self.factors:
            diagonal = self.diagonal(adapter_name)
            if diagonal.dz.is_meta or self.base_weight().is_meta:
                raise RuntimeError(
                    f"adapter '{adapter_name}' of layer '{self.layer_name}' has no values yet: "
                    "load its weights and those of the base model first"
                )
            self.factors[adapter_name] = self._share(
                self.r[adapter_name], diagonal.pivoting, diagonal.pivots
            )
        return self.factors[adapter_name]

    @torch.no_grad()
    def _share(self, rank: int, pivoting: Pivoting | None, pivots: Tensor | None) -> SharedFactors:
        """Return held factors that serve, or make new ones and let every adapter they serve share.

        Without pivots any held pair of the same kind serves: its directions are as good.
        """
        for held in self.factors.values():
            if held.pivoting == pivoting and held.begins_with(pivots, rank):
                return held
        shared = self._factorize(rank, pivoting, pivots)
        for name, held in self.factors.items():
            if held.pivoting == pivoting and shared.begins_with(held.pivots, held.rank):
                self.factors[name] = shared
        return shared

    def _factorize(
        self, rank: int, pivoting: Pivoting | None, pivots: Tensor | None
    ) -> SharedFactors:
        weight = self.base_weight()
        try:
            if pivoting is None:
                factors = svd(weight, rank)
            else:
                factors = ldu(weight, rank, pivots=pivots, pivoting=pivoting)
        except ValueError as error:
            raise ValueError(f"layer '{self.layer_name}': {error}") from error
        dropped = int((factors.diagonal == 0).sum())
        if dropped == rank:
            raise ValueError(
                f"layer '{self.layer_name}' has nothing to factor (its first {rank} pivots are "
                "zero): leave it out with exclude_modules"
            )
        if dropped:
            cure = 'pivoting="complete"' if pivoting == "partial" else "a smaller rank"
            warnings.warn(
                f"layer '{self.layer_name}': {dropped} of {rank} directions have a zero pivot and "
                f"are dropped; {cure} avoids it",
                stacklevel=2,
            )
        return SharedFactors.of(factors, pivoting, weight.dtype)

    def _current_weight_token(self) -> tuple[int, int]:
        weight = self.linear.weight
        return weight.data_ptr(), 0 if weight.is_inference() else weight._version

    def refresh_factors(self) -> None:
        """Bring the factors up to date with the saved pivots and the base weight."""
        if not self.merged and self._weight_token != (token := self._current_weight_token()):
            self.factors.clear()
            self._weight_token = token
        for name, rank in self.r.items():
            diagonal = self.diagonal(name)
            held = self.factors.get(name)
            if diagonal.dz.is_meta or self.base_weight().is_meta:
                continue
            if held is None or not held.begins_with(diagonal.pivots, rank):
                self.factors.pop(name, None)
                self.factors_of(name)

    def delta(self, adapter_name: str) -> Float[Tensor, " r"]:
        """Return delta at the adapter's strength, with its graph."""
        return self.diagonal(adapter_name).delta() * self.strength[adapter_name]

    def get_delta_weight(self, adapter_name: str) -> Float[Tensor, "out in"]:
        """Return ``delta_W = B diag(delta) A`` in float32 (float64 for a float64 base)."""
        shared = self.factors_of(adapter_name)
        r = self.r[adapter_name]
        delta = self.delta(adapter_name) * shared.gain[:r]
        dtype = torch.promote_types(shared.left.dtype, delta.dtype)
        left, right = shared.left[:, :r].to(dtype), shared.right[:r].to(dtype)
        return (left * delta) @ right

    @torch.no_grad()
    def delta_norm(self, adapter_name: str) -> float:
        """Return ‖delta_W‖_F of an adapter at strength 1, at the cost of r²."""
        delta, metric = self._delta_and_metric(adapter_name)
        return float(delta_norm(delta, metric))

    @torch.no_grad()
    def project(self, adapter_name: str, max_delta_norm: float | int) -> None:
        """Bring an adapter back onto the ball ``‖delta_W‖_F <= max_delta_norm``.

        Source: LoLDU, Eq. (10)-(12).
        """
        delta, metric = self._delta_and_metric(adapter_name)
        factor = projection_factor(delta, metric, max_delta_norm)
        if factor < 1:
            self.diagonal(adapter_name).shrink(factor)

    def _delta_and_metric(
        self, adapter_name: str
    ) -> tuple[Float[Tensor, " r"], Float[Tensor, "r r"]]:
        shared, r = self.factors_of(adapter_name), self.r[adapter_name]
        return self.diagonal(adapter_name).delta() * shared.gain[:r], shared.metric[:r, :r]

    def set_scale(self, adapter: str, scale: float | int) -> None:
        """Set the strength of an adapter; 1 is as trained."""
        if adapter in self.strength:
            self.strength[adapter] = float(scale)

    def scale_layer(self, scale: float | int) -> None:
        """Multiply the strength of every active adapter."""
        for name in self._active_here():
            self.strength[name] *= scale

    def unscale_layer(self, scale: float | int | None = None) -> None:
        """Divide the strength of every active adapter, or set it back to 1."""
        for name in self._active_here():
            self.strength[name] = 1.0 if scale is None else self.strength[name] / scale

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """A rank-r delta_W is a LoRA."""
        return True

    def _active_here(self) -> list[str]:
        return [name for name in self.active_adapters if name in self.loldu_diagonal]

    def _combined(self, adapter_names: Iterable[str]) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Left factor, delta and right factor of each update the layer adds to its base.

        Deltas of adapters that share factors are summed: one pass serves them all.
        """
        combined: dict[int, tuple[SharedFactors, Tensor]] = {}
        for name in adapter_names:
            shared, delta = self.factors_of(name), self.delta(name)
            if id(shared) in combined:
                _, other = combined[id(shared)]
                size = max(delta.numel(), other.numel())
                delta = F.pad(delta, (0, size - delta.numel()))
                delta = delta + F.pad(other, (0, size - other.numel()))
            combined[id(shared)] = shared, delta
        return [
            (shared.left[:, :r], delta * shared.gain[:r], shared.right[:r])
            for shared, delta in combined.values()
            for r in (delta.numel(),)
        ]

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's own version also casts the adapter to the dtype of the base.
        if adapter_name in self.loldu_diagonal and not self.diagonal(adapter_name).dz.is_meta:
            self.diagonal(adapter_name).to(device or self.base_weight().device)


class Linear(nn.Module, LoLDULayer):
    """``y = W x + b + B (delta ⊙ (A x))``; W is never rewritten, except while merged."""

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        *,
        layer_name: str,
        r: int,
        sigma_0: float,
        config: LoLDUConfig,
    ) -> None:
        """Wrap a linear layer and give it its first adapter."""
        super().__init__()
        LoLDULayer.__init__(self, base_layer, layer_name)
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, sigma_0, config)
        self.register_load_state_dict_post_hook(_refresh_after_load)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:  # noqa: ANN401
        """Apply the base layer and the active adapters."""
        if self.disable_adapters and self.merged:
            self.unmerge()
        active = [] if self.disable_adapters or self.merged else self._active_here()
        if not active:
            return self.base_layer(x, *args, **kwargs)
        first, *others = self._combined(active)
        result = adapted_linear(x, self.base_layer, *first)
        for left, delta, right in others:
            result = factored_update(x, result, left, delta, right)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the delta of adapters to the weight of the base layer.

        The base weight is kept aside, so that unmerging gives it back bit by bit.

        Raises:
            ValueError: With `safe_merge`, the merged weight is not finite.
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self.loldu_diagonal]
        if not names:
            return
        weight = self.linear.weight
        merged = weight.data
        for name in names:
            merged = merged + self.get_delta_weight(name).detach()
        merged = merged.to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(
                f"merging {names} makes the weight of layer '{self.layer_name}' not finite"
            )
        if self._weight_before_merge is None:
            self._weight_before_merge = weight.data
        weight.data = merged
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Give the base layer its own weight back."""
        if self._weight_before_merge is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.linear.weight.data = self._weight_before_merge
        self._weight_before_merge = None
        self.merged_adapters.clear()
        self._weight_token = self._current_weight_token()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linear":
        """Move the factors along.

        After a cast, LDU factors are made anew at their pivots, as they would be on reloading; an
        SVD has nothing to hold a new one to, so its factors are cast.
        """
        before = self.base_weight().dtype
        super()._apply(fn, recurse)
        weight = self.linear.weight
        if self._weight_before_merge is not None:
            self._weight_before_merge = fn(self._weight_before_merge)
        moved = {
            id(held): held.to(weight.device, weight.dtype)
            for held in self.factors.values()
            if not weight.is_meta and (weight.dtype == before or held.pivoting is None)
        }
        self.factors = {
            name: moved[id(held)] for name, held in self.factors.items() if id(held) in moved
        }
        self._weight_token = self._current_weight_token()
        return self

    def __repr__(self) -> str:
        """Say which method wraps the layer."""
        return "loldu." + super().__repr__()


def _refresh_after_load(layer: Linear, _: object) -> None:
    layer.refresh_factors()
