"""LoLDUModel: PEFT's tuner, which finds the target layers and wraps them."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import math
from collections import ChainMap
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.error import NoMatchingPeftModuleError
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

from loldu.adapter.config import LoLDUConfig
from loldu.adapter.layer import LoLDULayer
from loldu.adapter.linear import kind_of
from loldu.adapter.mixing import Mixture, Rows
from loldu.adapter.targets import default_targets, linear_names, what_was_meant
from loldu.adapter.uncalled import follow_readers, require_called


class LoLDUModel(BaseTuner):
    """Adapts the linear layers of a model with LoLDU or SVFit diagonals.

    Source: LoLDU, Sec. III; SVFit.
    """

    prefix = "loldu_"
    tuner_layer_cls = LoLDULayer
    # A view of PEFT's table, so that later entries count too.
    target_module_mapping: Any = ChainMap(  # noqa: RUF012  the base class declares it so
        {"clip_text_model": ["q_proj", "k_proj", "v_proj", "out_proj"]},
        TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
    )

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:  # noqa: ANN401
        """Fill in the target modules if they follow from the model.

        Raises:
            ValueError: If they do not.
        """
        if peft_config.target_modules is None:
            names = linear_names(self.model)
            known = self.target_module_mapping.get(model_config.get("model_type", ""))
            peft_config.target_modules = default_targets(known, names)
            if peft_config.target_modules is None:
                raise ValueError(
                    "Please specify `target_modules`: they do not follow from "
                    f"{type(self.model).__name__}. {what_was_meant(None, names)}"
                )
        return peft_config

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        *args: Any,  # noqa: ANN401
        **kwargs: Any,  # noqa: ANN401
    ) -> None:
        """Add an adapter to the layers it targets.

        Raises:
            NoMatchingPeftModuleError: If it targets none; the message suggests names.
        """
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except NoMatchingPeftModuleError as error:
            config: Any = self.peft_config[adapter_name]
            meant = what_was_meant(config.target_modules, linear_names(model))
            raise NoMatchingPeftModuleError(f"{error} {meant}") from error

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Keep trained parameters in float32, or cast them to the dtype of the base if asked to."""
        super()._cast_adapter_dtype(adapter_name, autocast_adapter_dtype)
        for layer in self.modules():
            if autocast_adapter_dtype or not isinstance(layer, LoLDULayer):
                continue
            weight: Any = layer.get_base_layer().weight
            if adapter_name in layer.loldu_diagonal and weight.is_floating_point():
                for parameter in layer.diagonal(adapter_name).parameters():
                    parameter.data = parameter.data.to(weight.dtype)

    def _create_and_replace(
        self,
        peft_config: Any,  # noqa: ANN401
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        """Add the adapter to a layer, and wrap the layer if it is not wrapped yet.

        Raises:
            TypeError: If the target is not a linear map, or its parent does not call it.
        """
        config: LoLDUConfig = peft_config
        r, sigma_0 = config.rank_and_sigma(current_key)
        if isinstance(target, LoLDULayer):
            target.update_layer(adapter_name, r, sigma_0, config)
            return
        require_called(parent, target_name, current_key, self.model)
        kind, quantization = kind_of(target, current_key, self.model)
        layer = kind(
            target,
            adapter_name,
            layer_name=current_key,
            r=r,
            sigma_0=sigma_0,
            config=config,
            quantization=quantization,
        )
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)
        follow_readers(parent, self.model)

    def _replace_module(
        self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module
    ) -> None:
        # PEFT's own version needs a weight in every module, but a head that is trained in full may
        # have none.
        setattr(parent, child_name, new_module)

    @contextmanager
    def _enable_peft_forward_hooks(self, *_: Any, **kwargs: Any) -> Generator[None]:  # noqa: ANN401
        """Use the adapters of every row of the batch during a call with `adapter_names`.

        Raises:
            ValueError: If there is no such adapter, or the model is being trained.
        """
        adapter_names: Sequence[Mixture] | None = kwargs.get("adapter_names")
        if adapter_names is None:
            yield
            return
        if self.training:
            raise ValueError("Cannot pass `adapter_names` when the model is in training mode.")
        if unknown := {*Rows.of(adapter_names).names} - {*self.peft_config}:
            raise ValueError(
                f"Trying to infer with non-existing adapter(s): {', '.join(sorted(unknown))}"
            )
        # Beam search repeats every row, except in the encoder of an encoder-decoder.
        repeated = [name for name in adapter_names for _ in range(kwargs.get("num_beams") or 1)]
        encoder = self.model.get_encoder() if hasattr(self.model, "get_encoder") else self.model
        encoding = set() if encoder is self.model else {*encoder.modules()}
        handles = [
            module.register_forward_pre_hook(
                partial(_pass_names, adapter_names if module in encoding else repeated),
                with_kwargs=True,
            )
            for module in self.modules()
            if isinstance(module, LoLDULayer | AuxiliaryTrainingWrapper)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def add_weighted_adapter(
        self, adapters: Sequence[str], weights: Sequence[float | int], adapter_name: str
    ) -> None:
        """Add one adapter that equals the weighted sum of several exactly.

        ``Σ_i w_i B diag(delta_i) A = B diag(Σ_i w_i delta_i) A`` for adapters between the same
        factors, each as trained (at strength 1). The new adapter is frozen and not yet active.

        Args:
            adapters: Names of the adapters to sum; each may adapt different layers.
            weights: A finite weight for each, negative ones included.
            adapter_name: Name of the new adapter.

        Raises:
            ValueError: If an adapter is unknown or trains modules in full, the new name is taken,
                weights are missing or not finite, or adapters do not share factors in a layer, so
                that one diagonal cannot hold their sum.
        """
        _check_weighted(self.peft_config, adapters, weights, adapter_name)
        deltas = {
            layer.layer_name: layer.weighted_delta(adapters, weights)
            for layer in self.modules()
            if isinstance(layer, LoLDULayer) and not layer.r.keys().isdisjoint(adapters)
        }
        ranks = {name: delta.numel() for name, (delta, _) in deltas.items()}
        factorizations = {shared.factorization for _, shared in deltas.values()}
        if len(factorizations) > 1:
            raise ValueError(
                f"adapters {', '.join(adapters)} differ in pivoting or factorization from layer to "
                "layer, which one adapter cannot: use loldu.mix, which needs no such adapter"
            )
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.peft_config[adapter_name] = LoLDUConfig.for_deltas(ranks, factorizations.pop())
        self.inject_adapter(self.model, adapter_name, low_cpu_mem_usage=True)
        for parameter in trained:
            # PEFT freezes the active adapters along with the new one.
            parameter.requires_grad_(True)
        for layer in self.modules():
            if isinstance(layer, LoLDULayer) and layer.layer_name in deltas:
                delta, shared = deltas[layer.layer_name]
                layer.load_delta(adapter_name, delta, shared.pivots_of(delta.numel()))


def _check_weighted(
    configs: dict[str, Any],
    adapters: Sequence[str],
    weights: Sequence[float | int],
    adapter_name: str,
) -> None:
    for name in adapters:
        if name not in configs:
            raise ValueError(f"Adapter {name} does not exist")
        if configs[name].modules_to_save:
            raise ValueError(
                f"adapter '{name}' also trains modules in full (modules_to_save), which have no "
                "weighted sum: leave it out"
            )
    if adapter_name in configs:
        raise ValueError(f"an adapter named '{adapter_name}' exists: choose another adapter_name")
    if not adapters or len(adapters) != len(weights) or not all(map(math.isfinite, weights)):
        raise ValueError(
            f"add_weighted_adapter needs a finite weight for each of {[*adapters]}, got "
            f"{[*weights]}"
        )


def _pass_names(
    adapter_names: Sequence[Mixture],
    _: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {**kwargs, "adapter_names": adapter_names}


def project(model: nn.Module, max_delta_norm: float | int, adapter_name: str = "default") -> None:
    """Rescale delta in every adapted layer to the ball ``‖delta_W‖_F <= max_delta_norm``.

    Call it after an optimizer step: it changes delta in place.

    Source: LoLDU, Eq. (10)-(12).
    """
    for module in model.modules():
        if isinstance(module, LoLDULayer) and adapter_name in module.r:
            module.project(adapter_name, max_delta_norm)
