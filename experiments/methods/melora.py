"""MELoRA: n small LoRAs side by side, each from its own share of the input to one of the output.

With both factors block-diagonal an update of rank n r costs the parameters of a LoRA of rank r:

    delta_W = alpha / r · diag(B_1 A_1, ..., B_n A_n)      A_i: (r, in / n)   B_i: (out / n, r)

PEFT has LoRA with one block-diagonal factor; here the other becomes so too.

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
    """PEFT's configuration of the whole.

    Args:
        target_modules: Names of layers.
        n: How many small LoRAs a layer has.
        r: The rank of each.
        lora_alpha: Of each: its scaling is `lora_alpha` / r.
        options: LoraConfig's own.

    Raises:
        ValueError: `n` or `r` is not positive.
    """
    if n < 1 or r < 1:
        raise ValueError(f"n and r must be positive, not {n} and {r}")
    return LoraConfig(
        r=n * r,
        lora_alpha=n * lora_alpha,  # type: ignore[arg-type]  any number will do
        target_modules=list(target_modules),
        use_bdlora=BdLoraConfig(target_modules_bd_a=list(target_modules), nblocks=n),
        **options,
    )


def cut_into_blocks(model: PeftModel) -> None:
    """Make the other factor block-diagonal too, with LoRA's own start in every block.

    Raises:
        ValueError: A layer's width cannot be divided by n.
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
