"""The state of the adapters of one layer: diagonals, strengths, ranks, and rows of a batch."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from loldu.adapter.base_weight import as_stored
from loldu.adapter.config import LoLDUConfig
from loldu.adapter.diagonal import (
    LoLDUDiagonal,
    delta_norm,
    initial_diagonal,
    layer_generator,
    projection_factor,
)
from loldu.adapter.layer_factors import LayerFactors
from loldu.adapter.mixing import (
    Mixture,
    Rows,
    Update,
    rows_by_name,
    summed,
    times_in_batch,
    updates_of_rows,
)
from loldu.adapter.shared_factors import SharedFactors


class LoLDULayer(LayerFactors):
    """Adapter state of one linear layer, by adapter name."""

    adapter_layer_names = ("loldu_diagonal",)
    other_param_names = (
        *("r", "strength", "dropout", "factors"),
        *("pivots_version", "starts", "base_checked"),
    )

    def __init__(self, base_layer: nn.Module, layer_name: str) -> None:
        """Wrap a base layer; its name is for messages and for seeding."""
        super().__init__(base_layer, layer_name)
        self.strength: dict[str, float] = {}
        self.dropout: dict[str, float] = {}
        self.rows: Rows | None = None
        self.merged_adapters: list[str] = []
        self._disable_adapters = False

    def update_layer(self, adapter_name: str, r: int, sigma_0: float, config: LoLDUConfig) -> None:
        """Add an adapter of rank r (clamped to the layer) that starts at the base model.

        Raises:
            ValueError: If the base weight is zero or not finite.
        """
        rank = min(r, self.in_features, self.out_features)
        diagonal = LoLDUDiagonal(
            rank,
            sigma_0,
            factorization=config.factorization_name,
            train_scale=config.train_scale,
            perturbs=config.residual == "perturb",
            has_units=config.normalize_directions,
        )
        if self.weight.is_meta or diagonal.dz.is_meta:
            # A checkpoint is about to fill in the values; there is nothing to factor yet.
            diagonal.to("meta")
        else:
            shared = self._share(rank, diagonal.factorization, None)
            self._start(diagonal.to(self.weight.device), shared, config)
            self.factors[adapter_name] = shared
            self.base_checked[adapter_name] = True
        self.starts[adapter_name] = config.diagonal_init, config.seed
        self.r[adapter_name] = rank
        self.strength[adapter_name] = 1.0
        self.dropout[adapter_name] = config.dropout
        self.loldu_diagonal[adapter_name] = diagonal
        diagonal.requires_grad_(adapter_name in self.active_adapters and not config.inference_mode)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Make adapters the active ones of all rows of a batch, and train these alone.

        Unlike PEFT's own method, it writes nothing to the adapters that stay as they are: there may
        be hundreds.
        """
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name, diagonal in self.loldu_diagonal.items():
            trains = name in names and not inference_mode
            if diagonal.dz.requires_grad != trains:
                diagonal.requires_grad_(trains)
        self.activate(names)

    def activate(self, adapter_names: list[str]) -> None:
        """Make adapters the active ones of all rows; the trained parameters stay the same."""
        self._active_adapter = adapter_names
        self.rows = None

    def switch_on(self) -> None:
        """Undo `disable_adapters`; the trained parameters stay the same."""
        self._disable_adapters = False

    def adapters_in_use(self) -> list[str]:
        """Return the adapters of this layer that are active, or that rows of a batch use."""
        names = self.active_adapters if self.rows is None else self.rows.names
        return [name for name in names if name in self.r]

    def delete_adapter(self, adapter_name: str) -> None:
        """Free an adapter, and the factors that no other adapter uses."""
        super().delete_adapter(adapter_name)
        if self.rows is not None and adapter_name in self.rows.names:
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
            # Drawn from torch's global state, as in PEFT's methods: two such adapters must differ.
            diagonal.dz.copy_(spread.cpu() * torch.randn(d.shape, device="cpu"))

    @torch.no_grad()
    def load_delta(
        self, adapter_name: str, delta: Float[Tensor, " r"], pivots: Tensor | None
    ) -> None:
        """Give an adapter (with sigma_0 = 1) a delta, on the factors at the given pivots."""
        diagonal = self.diagonal(adapter_name).to_empty(device=self.weight.device)
        for tensor in (*diagonal.parameters(), *diagonal.buffers()):
            tensor.zero_()
        if diagonal.unit is not None:
            diagonal.unit.fill_(1)
        diagonal.dz.copy_(delta)
        if diagonal.pivots is not None and pivots is not None:
            diagonal.pivots.copy_(pivots)
        self.factors[adapter_name] = self._share(
            delta.numel(), diagonal.factorization, diagonal.pivots
        )
        self.base_checked[adapter_name] = True  # whoever gives a delta has compared the base

    def delta(self, adapter_name: str) -> Float[Tensor, "*rows r"]:
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

    def squared_delta_norm(self, adapter_name: str) -> Float[Tensor, ""]:
        """Return ‖delta_W‖_F² of an adapter at strength 1, with its graph, at the cost of r²."""
        delta, metric = self._delta_and_metric(adapter_name)
        delta = delta.to(metric.dtype)
        return delta @ metric @ delta

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
        """Return ``Σ_i w_i delta_i`` of adapters at strength 1, and the factors that they share.

        Raises:
            ValueError: If they do not share factors.
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
        """Set the strength of an adapter; 1 is the trained strength."""
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
        """Return whether PEFT can convert this layer to a LoRA: it converts linear layers."""
        return isinstance(self.get_base_layer(), nn.Linear | Conv1D)

    def _updates(
        self, batch: int, adapter_names: Sequence[Mixture] | Rows | None
    ) -> tuple[int, list[Update]]:
        """Return the updates of the base's output, and how many rows at its start have none."""
        rows = self.rows
        if adapter_names is not None:
            rows = rows_by_name(adapter_names, batch)
        if rows is None:
            parts = self._parts(() if self.merged else self.active_adapters)
            return 0, summed(parts.values())
        times = times_in_batch(rows, batch, self.layer_name)
        if self.merged:
            what = "pass `adapter_names`" if self.rows is None else "give rows their own concepts"
            raise ValueError(
                f"Cannot {what} when there are merged adapters, please call `unmerge_adapter` "
                f"first. (layer '{self.layer_name}')"
            )
        blank = rows.blank if rows.same else 0
        return blank, updates_of_rows(self._parts(rows.names), rows, times)

    def _parts(self, adapter_names: Iterable[str]) -> dict[str, Update]:
        """Return the update of each adapter; strength 0 adds nothing, not even rounding."""
        training = self.loldu_diagonal.training
        return {
            name: Update(
                self.factors_of(name), self.delta(name), self.dropout[name] if training else 0.0
            )
            for name in dict.fromkeys(adapter_names)
            if self.strength.get(name, 0.0) != 0
        }

    def _move_adapter_to_device_of_base_layer(
        self, adapter_name: str, device: torch.device | None = None
    ) -> None:
        # PEFT's own version also casts the adapter to the dtype of the base.
        if adapter_name in self.loldu_diagonal and not self.diagonal(adapter_name).dz.is_meta:
            self.diagonal(adapter_name).to(device or self.weight.device)


def set_rows(layers: Iterable[LoLDULayer], rows: Rows | None) -> None:
    """Give the rows of the next batches their own adapters; None ends it."""
    on_device: dict[torch.device, Rows] = {}
    for layer in layers:
        device = layer.weight.device
        if rows is not None and device not in on_device:
            on_device[device] = rows.to(device)
        layer.rows = on_device.get(device)
