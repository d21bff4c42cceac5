"""From the method's name to an adapter on the UNet, and from the adapter to its file."""

import logging
import math
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, PeftConfig
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from loldu import ConceptError, LoLDUConfig, save_concept
from loldu.layer import LoLDULayer
from trainer.config import AdapterConfig
from trainer.errors import TrainerError
from trainer.files import write_atomically
from trainer.lora_file import LORA, lora_bytes, lora_header

logger = logging.getLogger(__name__)

ADAPTER_NAME = "default"
FILE_NAMES = {
    "loldu": "concept.safetensors",
    "svfit": "concept.safetensors",
    "lora": LORA,
}


def add_adapter(
    unet: UNet2DConditionModel, adapter: AdapterConfig, seed: int
) -> dict[str, nn.Parameter]:
    """Put the method's adapter on the UNet and give what it trains, by name, in fp32.

    The UNet is frozen and in its compute dtype before. What is trained stays fp32 in every
    precision: in bf16 an AdamW step of 5e-4 is smaller than the spacing of the numbers.

    Raises:
        TrainerError: when no layer matches, or the adapter refuses its options.
    """
    largest_rank = _largest_rank(unet, adapter.target_modules)
    torch.manual_seed(seed)  # LoRA's A is random
    try:
        unet.add_adapter(adapter_config(adapter, largest_rank, seed), adapter_name=ADAPTER_NAME)
    except ValueError as error:
        reason = str(error).splitlines()[0].rstrip(".")
        raise TrainerError(f"The {adapter.method} adapter cannot be added: {reason}.") from error
    trainable = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    for parameter in trainable.values():
        parameter.data = parameter.data.float()
    return trainable


def adapter_config(adapter: AdapterConfig, largest_rank: int, seed: int) -> PeftConfig:
    """The PEFT config of a method.

    The scale alpha / rank is what multiplies the diagonal's steps, so it must be the same on all
    layers: `full` is the rank of the largest one, which the smaller ones clamp, and alpha defaults
    to the rank, a scale of 1.
    """
    rank = largest_rank if adapter.rank == "full" else adapter.rank
    targets = list(adapter.target_modules)
    if adapter.method == "lora":
        alpha: Any = adapter.alpha or rank  # typed as an int, but any number will do
        return LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets)
    return LoLDUConfig(
        r=rank,
        alpha=adapter.alpha,
        factorization="svd" if adapter.method == "svfit" else "ldu",
        diagonal_init=adapter.diagonal_init,
        residual=adapter.residual,
        pivoting=adapter.pivoting,
        train_scale=adapter.train_scale,
        seed=seed,
        target_modules=targets,
    )


def save_result(
    pipeline: StableDiffusionPipeline,
    adapter: AdapterConfig,
    output_dir: Path,
    metadata: dict[str, Any],
) -> Path:
    """Write the trained adapter as the one file people keep, whole or not at all.

    A concept for loldu and svfit; for lora the file that other programs read.

    Raises:
        TrainerError: when the adapter is not fit to be saved.
    """
    path = output_dir / FILE_NAMES[adapter.method]
    if adapter.method != "lora":
        try:
            return save_concept(pipeline, path, ADAPTER_NAME, metadata, overwrite=True)
        except ConceptError as error:
            raise TrainerError(f"The concept cannot be saved: {error}.") from error
    header = lora_header(pipeline, metadata)
    write_atomically(path, lora_bytes(pipeline.unet, ADAPTER_NAME, header))
    return path


@torch.no_grad()
def delta_norm(unet: UNet2DConditionModel) -> float:
    """‖delta_W‖_F over all adapted layers together: how far the model is from its base."""
    layers: list[Any] = [m for m in unet.modules() if isinstance(m, BaseTunerLayer)]
    norms = [
        layer.delta_norm(ADAPTER_NAME)
        if isinstance(layer, LoLDULayer)
        else float(layer.get_delta_weight(ADAPTER_NAME).float().norm())
        for layer in layers
    ]
    return math.hypot(*norms)


def _largest_rank(unet: UNet2DConditionModel, targets: tuple[str, ...]) -> int:
    shapes = [
        module.weight.shape
        for name, module in unet.named_modules()
        if hasattr(module, "weight")
        and any(name == target or name.endswith(f".{target}") for target in targets)
    ]
    if not shapes:
        raise TrainerError(
            f"--target_modules {' '.join(targets)} matches no layer of the UNet; the attention "
            "layers are to_q, to_k, to_v and to_out.0."
        )
    return max(min(shape[0], shape[1:].numel()) for shape in shapes)
