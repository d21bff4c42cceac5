"""The optimizers: torch's fused AdamW, and two of other libraries (`loldu[optimizers]`)."""

import importlib
import logging
from collections.abc import Sequence
from typing import Any

from torch.optim import AdamW, Optimizer

from loldu.errors import LoLDUError
from trainer.options.config import OptimizationConfig, OptimizerName

logger = logging.getLogger(__name__)

_FROM_LIBRARIES: dict[OptimizerName, tuple[str, str, dict[str, Any]]] = {
    "adamw8bit": ("bitsandbytes.optim", "AdamW8bit", {}),
    # As its authors advise for diffusion models; the safeguard helps with warm-up only.
    "prodigy": ("prodigyopt", "Prodigy", {"use_bias_correction": True, "safeguard_warmup": True}),
}
FEWEST_IN_8_BITS = 4096
"""bitsandbytes keeps the state of smaller tensors in 32 bits."""


def optimizer_class(name: OptimizerName) -> tuple[type[Optimizer], dict[str, Any]]:
    """Return the class of an optimizer, and its settings.

    Raises:
        LoLDUError: If its library is not installed.
    """
    if name == "adamw":
        return AdamW, {"fused": True}
    module, attribute, settings = _FROM_LIBRARIES[name]
    try:
        return getattr(importlib.import_module(module), attribute), settings
    except ImportError as error:
        raise LoLDUError(
            f"--optimizer {name} needs the package {module.partition('.')[0]}: "
            "pip install 'loldu[optimizers]', or leave the flag out to train with AdamW."
        ) from error


def make_optimizer(optimization: OptimizationConfig, groups: Sequence[dict[str, Any]]) -> Optimizer:
    """Return the optimizer of groups of parameters, each with its learning rate.

    Raises:
        LoLDUError: If its library is not installed.
    """
    name = optimization.optimizer
    parameters = [parameter for group in groups for parameter in group["params"]]
    if name == "adamw8bit" and all(p.numel() < FEWEST_IN_8_BITS for p in parameters):
        logger.warning(
            "--optimizer adamw8bit saves nothing here: it keeps only tensors of %d numbers or "
            "more in 8 bits, and none is that large.",
            FEWEST_IN_8_BITS,
        )
    kind, settings = optimizer_class(name)
    options: dict[str, Any] = {"weight_decay": optimization.adam_weight_decay, **settings}
    return kind([*groups], **options)
