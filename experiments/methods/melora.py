"""MELoRA: n small LoRAs side by side, each from its own part of the input to one of the output.

Both factors are block-diagonal, so an update of rank n r has the parameters of a LoRA of rank r:

    delta_W = alpha / r · diag(B_1 A_1, ..., B_n A_n)      A_i: (r, in / n)   B_i: (out / n, r)

PEFT offers LoRA with one block-diagonal factor; this module makes the other one block-diagonal.

Source: Ren et al., "MELoRA: Mini-Ensemble Low-Rank Adapters for Parameter-Efficient Fine-Tuning",
ACL 2024.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from peft.tuners.lora import BdLoraConfig, LoraLayer
from peft.tuners.lora.variants import BlockDiagonalLinear
from torch import nn


def melora_config(
    target_modules: Sequence[str],
    n: int = 8,
    r: int = 1,
    lora_alpha: float = 16,
    **options: Any,  # noqa: ANN401
) -> LoraConfig:
    """Return PEFT's config of all n LoRAs together.

    Args:
        target_modules: Names of layers.
        n: Number of small LoRAs per layer.
        r: Rank of each.
        lora_alpha: Alpha of each; the scaling is `lora_alpha` / r.
        options: Other options of LoraConfig.

    Raises:
        ValueError: If `n` or `r` is not positive.
    """
    if n < 1 or r < 1:
        raise ValueError(f"n and r must be positive, not {n} and {r}")
    return LoraConfig(
        r=n * r,
        lora_alpha=n * lora_alpha,  # type: ignore[arg-type]  any number works
        target_modules=list(target_modules),
        use_bdlora=BdLoraConfig(target_modules_bd_a=list(target_modules), nblocks=n),
        **options,
    )


def cut_into_blocks(model: PeftModel) -> None:
    """Make the second factor block-diagonal, with LoRA's initial values in every block.

    Raises:
        ValueError: If a layer's width is not divisible by n.
    """
    for layer in model.modules():
        if not isinstance(layer, LoraLayer):
            continue
        for name, first in layer.lora_A.items():
            assert isinstance(first, BlockDiagonalLinear)
            with torch.no_grad():
                nn.init.kaiming_uniform_(first.weight, a=math.sqrt(5))
            assert isinstance(layer.out_features, int)
            layer.lora_B[name] = BlockDiagonalLinear(
                first.out_features,
                layer.out_features,
                nblocks=first.nblocks,
                init_zero=True,
                dtype=first.weight.dtype,
                device=first.weight.device,
            )
