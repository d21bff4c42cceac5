"""LoLDUModel: PEFT's tuner, which finds the target layers and wraps them."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import Any

from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from .config import LoLDUConfig
from .layer import Linear, LoLDULayer

DIFFUSERS_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


class LoLDUModel(BaseTuner):
    """Adapts the linear layers of a model with LoLDU or SVFit diagonals.

    Source: LoLDU, Sec. III; SVFit.
    """

    prefix = "loldu_"
    tuner_layer_cls = LoLDULayer
    target_module_mapping: dict[str, Any] = {  # noqa: RUF012  the base class declares it so
        **TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING,
        "clip_text_model": ["q_proj", "k_proj", "v_proj", "out_proj"],
    }

    def _prepare_adapter_config(self, peft_config: Any, model_config: Any) -> Any:  # noqa: ANN401
        """Fill in the target modules where they follow from the model.

        Raises:
            ValueError: They do not.
        """
        if peft_config.target_modules is None:
            linear = [
                name.removesuffix(".base_layer")
                for name, part in self.named_modules()
                if isinstance(part, nn.Linear)
            ]
            targets = self.target_module_mapping.get(model_config.get("model_type", ""))
            if targets is None and any(name.endswith("to_q") for name in linear):
                targets = DIFFUSERS_ATTENTION
            if targets is None:
                known = ", ".join(sorted({name.rpartition(".")[2] for name in linear})[:20])
                raise ValueError(
                    f"target_modules is needed for {type(self.model).__name__}; it has linear "
                    f"layers named {known or '(none)'}"
                )
            peft_config.target_modules = targets if isinstance(targets, str) else set(targets)
        return peft_config

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
        """Give a layer the adapter, wrapping it if it is not wrapped yet.

        Raises:
            TypeError: The target is not a linear layer.
        """
        config: LoLDUConfig = peft_config
        r, sigma_0 = config.rank_and_sigma(current_key)
        if isinstance(target, LoLDULayer):
            target.update_layer(adapter_name, r, sigma_0, config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        if not isinstance(base, nn.Linear):
            raise TypeError(
                f"target module '{current_key}' is a {type(base).__name__}, and LoLDU adapts "
                "nn.Linear: narrow target_modules or name it in exclude_modules"
            )
        layer = Linear(
            target,
            adapter_name,
            layer_name=current_key,
            r=r,
            sigma_0=sigma_0,
            config=config,
        )
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)


def project(model: nn.Module, max_delta_norm: float | int, adapter_name: str = "default") -> None:
    """Bring every adapted layer back onto the ball ``‖delta_W‖_F <= max_delta_norm``.

    To be called after an optimizer step: it rescales delta in place.

    Source: LoLDU, Eq. (10)-(12).
    """
    for module in model.modules():
        if isinstance(module, LoLDULayer) and adapter_name in module.r:
            module.project(adapter_name, max_delta_norm)
