"""The adapted layer: one diagonal per adapter between factors that all its adapters share."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import warnings
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float
from peft.tuners.tuners_utils import check_adapters_to_merge
from peft.utils.quantization_utils import QuantizationBackend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loldu.adapter.base_layer import as_stored, check_requantizable
from loldu.adapter.config import LoLDUConfig
from loldu.adapter.diagonal import (
    LoLDUDiagonal,
    delta_norm,
    initial_diagonal,
    layer_generator,
    projection_factor,
)
from loldu.adapter.factored_layer import FactoredLayer
from loldu.adapter.functional import adapted_linear
from loldu.adapter.mixing import Update, add_updates, per_row, rows_by_name, rows_of_batch, summed
from loldu.adapter.shared_factors import SharedFactors


class LoLDULayer(FactoredLayer):
    """Adapter state of one linear layer, by adapter name."""

    adapter_layer_names = ("loldu_diagonal",)
    other_param_names = ("r", "strength", "dropout", "factors", "pivots_version")

    def __init__(self, base_layer: nn.Module, layer_name: str) -> None:
        """Wrap a base layer; its name is for messages and for seeding."""
        super().__init__(base_layer, layer_name)
        self.strength: dict[str, float] = {}
        self.dropout: dict[str, float] = {}
        self.rows: tuple[str | None, ...] | None = None
        self.merged_adapters: list[str] = []
        self._disable_adapters = False

    def update_layer(self, adapter_name: str, r: int, sigma_0: float, config: LoLDUConfig) -> None:
        """Add an adapter of rank r (clamped to the layer) that starts at the base model.

        Raises:
            ValueError: The base weight is zero or not finite.
        """
        rank = min(r, self.in_features, self.out_features)
        diagonal = LoLDUDiagonal(
            rank,
            sigma_0,
            pivoting=config.pivoting if config.factorization == "ldu" else None,
            train_scale=config.train_scale,
            perturbs=config.residual == "perturb",
            has_units=config.normalize_directions,
        )
        if self.weight.is_meta or diagonal.dz.is_meta:
            # A checkpoint is about to bring the values; there is nothing to factor yet.
            diagonal.to("meta")
        else:
            shared = self._share(rank, diagonal.pivoting, None)
            self._start(diagonal.to(self.weight.device), shared, config)
            self.factors[adapter_name] = shared
        self.r[adapter_name] = rank
        self.strength[adapter_name] = 1.0
        self.dropout[adapter_name] = config.dropout
        self.loldu_diagonal[adapter_name] = diagonal
        diagonal.requires_grad_(adapter_name in self.active_adapters and not config.inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters the active ones, of all rows of a batch, and those alone the trained ones.

        Unlike PEFT's own, it writes nothing to the hundreds of adapters that stay as they are.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name, diagonal in self.loldu_diagonal.items():
            trains = name in names and not inference_mode
            if diagonal.dz.requires_grad != trains:
                diagonal.requires_grad_(trains)
        self.activate(names)

    def activate(self, adapter_names: list[str]) -> None:
        """Make adapters the active ones, of all rows, and leave what is trained as it is."""
        self._active_adapter = adapter_names
        self.rows = None

    def adapters_in_use(self) -> list[str]:
        """Return the adapters of this layer that are active, or that rows have for their own."""
        names = self.active_adapters if self.rows is None else dict.fromkeys(self.rows)
        return [name for name in names if name is not None and name in self.r]

    def delete_adapter(self, adapter_name: str) -> None:
        """Free an adapter, and the factors that no other adapter uses."""
        super().delete_adapter(adapter_name)
        if self.rows is not None and adapter_name in self.rows:
            self.rows = None

    @torch.no_grad()
    def _start(self, diagonal: LoLDUDiagonal, shared: SharedFactors, config: LoLDUConfig) -> None:
        d = shared.diagonal[: diagonal.dz.numel()]
        generator = layer_generator(config.seed, self.layer_name)
        z_ref = initial_diagonal(config.diagonal_init, d, generator)
        if diagonal.z_ref is not None:
            diagonal.z_ref.copy_(z_ref)
        if diagonal.perturbation is not None:
            diagonal.perturbation.copy_(z_ref - d)
        if diagonal.pivots is not None and shared.pivots is not None:
            diagonal.pivots.copy_(shared.pivots[..., : d.numel()])
        if diagonal.unit is not None:
            norms = shared.norms[: d.numel()]
            diagonal.unit.copy_(torch.where(norms == 0, 1.0, 1 / norms))
        if not config.init_weights:
            spread = 0.2 * d.square().mean().sqrt()
            # From torch's own state, as PEFT's methods draw: two such adapters are to differ.
            diagonal.dz.copy_(spread.cpu() * torch.randn(d.shape, device="cpu"))

    @torch.no_grad()
    def load_delta(
        self, adapter_name: str, delta: Float[Tensor, " r"], pivots: Tensor | None
    ) -> None:
        """Make an adapter (of sigma_0 = 1) a given delta on the factors at the given pivots."""
        diagonal = self.diagonal(adapter_name).to_empty(device=self.weight.device)
        for tensor in (*diagonal.parameters(), *diagonal.buffers()):
            tensor.zero_()
        if diagonal.unit is not None:
            diagonal.unit.fill_(1)
        diagonal.dz.copy_(delta)
        if diagonal.pivots is not None and pivots is not None:
            diagonal.pivots.copy_(pivots)
        self.factors[adapter_name] = self._share(delta.numel(), diagonal.pivoting, diagonal.pivots)

    def delta(self, adapter_name: str) -> Float[Tensor, " r"]:
        """Return delta at the adapter's strength, with its graph."""
        delta, strength = self.diagonal(adapter_name).delta(), self.strength[adapter_name]
        return delta if strength == 1 else delta * strength

    def get_delta_weight(self, adapter_name: str) -> Float[Tensor, "..."]:
        """Return ``delta_W = B diag(delta) A`` in float32 (float64 for a float64 base).

        It has the layout of the layer's own weight: for a Conv1D it is the transpose.
        """
        shared = self.factors_of(adapter_name)
        r = self.r[adapter_name]
        delta = self.delta(adapter_name) * shared.gain[:r]
        dtype = torch.promote_types(shared.left.dtype, delta.dtype)
        left, right = shared.left[:, :r].to(dtype), shared.right[:r].to(dtype)
        with torch.autocast(left.device.type, enabled=False):
            delta_weight = (left * delta) @ right
        return as_stored(self.get_base_layer(), delta_weight)

    @torch.no_grad()
    def delta_norm(self, adapter_name: str) -> Float[Tensor, ""]:
        """Return ‖delta_W‖_F of an adapter at strength 1, on its device, at the cost of r²."""
        return delta_norm(*self._delta_and_metric(adapter_name))

    @torch.no_grad()
    def project(self, adapter_name: str, max_delta_norm: float | int) -> None:
        """Bring an adapter back onto the ball ``‖delta_W‖_F <= max_delta_norm``.

        Source: LoLDU, Eq. (10)-(12).
        """
        delta, metric = self._delta_and_metric(adapter_name)
        self.diagonal(adapter_name).shrink(projection_factor(delta, metric, max_delta_norm))

    def _delta_and_metric(
        self, adapter_name: str
    ) -> tuple[Float[Tensor, " r"], Float[Tensor, "r r"]]:
        shared, r = self.factors_of(adapter_name), self.r[adapter_name]
        return self.diagonal(adapter_name).delta() * shared.gain[:r], shared.metric[:r, :r]

    def weighted_delta(
        self, adapter_names: Sequence[str], weights: Sequence[float | int]
    ) -> tuple[Float[Tensor, " r"], SharedFactors]:
        """Return ``Σ_i w_i delta_i`` of adapters, as trained, and the factors they all share.

        Raises:
            ValueError: They do not share factors.
        """
        sums = summed(
            Update(self.factors_of(name), self.diagonal(name).delta() * weight)
            for name, weight in zip(adapter_names, weights, strict=True)
            if name in self.loldu_diagonal
        )
        if len(sums) > 1:
            raise ValueError(
                f"adapters {', '.join(adapter_names)} do not share factors in layer "
                f"'{self.layer_name}' (other pivots, pivoting or factorization), so one adapter "
                "cannot hold their sum: use loldu.mix, which needs no such adapter"
            )
        return sums[0].delta, sums[0].factors

    def set_scale(self, adapter: str, scale: float | int) -> None:
        """Set the strength of an adapter; 1 is as trained."""
        if adapter in self.strength:
            self.strength[adapter] = float(scale)

    def scale_layer(self, scale: float | int) -> None:
        """Multiply the strength of every adapter in use."""
        for name in self.adapters_in_use():
            self.strength[name] *= scale

    def unscale_layer(self, scale: float | int | None = None) -> None:
        """Divide the strength of every adapter in use, or set it back to 1."""
        for name in self.adapters_in_use():
            self.strength[name] = 1.0 if scale is None else self.strength[name] / scale

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """A rank-r delta_W is a LoRA; PEFT's own conversion reads linear layers."""
        return isinstance(self.get_base_layer(), nn.Linear | Conv1D)

    def _updates(self, batch: int, adapter_names: Sequence[str] | None) -> list[Update]:
        """Return what the layer adds to its base's output."""
        if adapter_names is None:
            rows = rows_of_batch(self.rows, batch, self.layer_name)
        else:
            rows = rows_by_name(adapter_names, batch)
        if rows is None:
            parts = self._parts(() if self.merged else self.active_adapters)
            return summed(parts.values())
        if self.merged:
            what = "pass `adapter_names`" if self.rows is None else "give rows their own concepts"
            raise ValueError(
                f"Cannot {what} when there are merged adapters, please call `unmerge_adapter` "
                f"first. (layer '{self.layer_name}')"
            )
        parts = self._parts(rows)
        if len(set(rows)) == 1:
            return summed(parts.values())
        return per_row([parts.get(name) for name in rows])

    def _parts(self, adapter_names: Iterable[str | None]) -> dict[str | None, Update]:
        """What each adapter does here; one of strength 0 does nothing, not even rounding."""
        training = self.loldu_diagonal.training
        return {
            name: Update(
                self.factors_of(name), self.delta(name), self.dropout[name] if training else 0.0
            )
            for name in dict.fromkeys(adapter_names)
            if name is not None and self.strength.get(name, 0.0) != 0
        }

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's own version also casts the adapter to the dtype of the base.
        if adapter_name in self.loldu_diagonal and not self.diagonal(adapter_name).dz.is_meta:
            self.diagonal(adapter_name).to(device or self.weight.device)


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
        quantization: QuantizationBackend | None = None,
    ) -> None:
        """Wrap a linear layer and give it its first adapter."""
        super().__init__()
        LoLDULayer.__init__(self, base_layer, layer_name)
        self.quantization_backend = quantization
        self._active_adapter = adapter_name
        self.update_layer(adapter_name, r, sigma_0, config)
        self.register_load_state_dict_post_hook(_follow_loaded)

    def forward(
        self,
        x: Tensor,
        adapter_names: Sequence[str] | None = None,
    ) -> Tensor:
        """Apply the base layer and the active adapters, or to every row its own.

        Args:
            x: Input; its first axis is the batch.
            adapter_names: An adapter for every row, "__base__" for none (PEFT's mixed batches).

        Raises:
            ValueError: Rows have their own adapters, and the batch does not fit them.
        """
        if self.disable_adapters and self.merged:
            self.unmerge()
        updates = [] if self.disable_adapters else self._updates(len(x), adapter_names)
        if not updates:
            return self.base_layer(x)
        return self._adapted(x, updates)

    def _adapted(self, x: Tensor, updates: list[Update]) -> Tensor:
        """Apply the base layer and the updates, of which there is at least one."""
        first, *others = updates
        if first.dropout:
            return add_updates(x, self.base_layer(x), updates)
        result = adapted_linear(x, self.base_layer, first.factors, first.delta)
        return add_updates(x, result, others)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the delta of adapters to the weight of the base layer.

        The base weight is kept aside, so that unmerging gives it back bit by bit, but for a
        quantized one, which is quantized again both times.

        Raises:
            ValueError: With `safe_merge`, the merged weight is not finite; or the base layer is
                quantized, and it is not known how to do that again.
        """
        names = check_adapters_to_merge(self, adapter_names)
        names = [name for name in names if name in self.loldu_diagonal]
        if not names:
            return
        if self.quantization_backend is not None:
            check_requantizable(self.quantization_backend, self.layer_name)
        weight = self.get_base_weight()
        merged = weight
        for name in names:
            merged = merged + self.get_delta_weight(name).detach()
        merged = merged.to(weight.dtype)
        if safe_merge and not torch.isfinite(merged).all():
            raise ValueError(
                f"NaNs detected in the merged weights. The adapter {', '.join(names)} seems to be "
                f"broken (layer '{self.layer_name}'): train or load it anew"
            )
        if self._weight_before_merge is None:
            self._weight_before_merge = weight
        self.set_base_weight(merged)
        self.merged_adapters.extend(names)

    def unmerge(self) -> None:
        """Give the base layer its own weight back."""
        if self._weight_before_merge is None:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        self.set_base_weight(self._weight_before_merge)
        self._weight_before_merge = None
        self.merged_adapters.clear()
        self.keep_factors()

    def train(self, mode: bool = True) -> "Linear":
        """Switch between training and use, with factors at the pivots a loader may have written.

        Loaders of other libraries end with it, and a compiled forward pass cannot look itself.
        """
        super().train(mode)
        self.follow_pivots()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Linear":
        """Move the factors along.

        After a cast, LDU factors are made anew at their pivots, as they would be on reloading; an
        SVD has nothing to hold a new one to, so its factors are cast.
        """
        before = self.weight.dtype
        super()._apply(fn, recurse)
        weight = self.weight
        if self._weight_before_merge is not None:
            self._weight_before_merge = fn(self._weight_before_merge)
        same = weight.dtype == before
        self._fingerprint = None
        with torch.inference_mode(False):
            moved = {
                id(held): held.to(weight.device, held.left.dtype if same else weight.dtype)
                for held in self.factors.values()
                if not weight.is_meta and (same or held.pivoting is None)
            }
        cast = [] if weight.is_meta else [n for n, f in self.factors.items() if id(f) not in moved]
        self.factors = {
            name: moved[id(held)] for name, held in self.factors.items() if id(held) in moved
        }
        self.keep_factors()
        # At once, for a compiled forward pass cannot; the largest rank serves the others.
        for name in sorted(cast, key=self.r.__getitem__, reverse=True):
            self.factors_of(name)
        return self

    def __repr__(self) -> str:
        """Say which method wraps the layer."""
        return "loldu." + super().__repr__()


def _follow_loaded(layer: Linear, _: object) -> None:
    layer.follow_pivots()
