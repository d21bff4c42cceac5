"""The optimizers, torch's fused AdamW and two of other libraries, and their learning rate."""

import importlib
import logging
import math
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


def lr_factor(optimization: OptimizationConfig, step: int) -> float:
    """Return the factor on a step's learning rates: warm-up, then the schedule."""
    warmup, last = optimization.lr_warmup_steps, optimization.max_train_steps
    if step < warmup:
        return (step + 1) / warmup
    left = 1 - (step - warmup) / max(1, last - warmup)
    return {
        "constant": 1.0,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "linear": left,
    }[optimization.lr_scheduler]
