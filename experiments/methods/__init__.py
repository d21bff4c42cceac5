"""The compared training methods, applied to a model by name.

A method is an adapter on the model's layers, or a selection of its own weights. Adapters are those
of PEFT, including LoLDU; `melora` adds the one that PEFT lacks.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from peft import (
    AdaLoraConfig,
    FourierFTConfig,
    LoraConfig,
    PeftConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
)
from torch import nn
from transformers import PreTrainedModel

from experiments.config import check_method
from experiments.methods.melora import cut_into_blocks, melora_config
from loldu import LoLDUConfig
from loldu.adapter.targets import SPELLINGS, linear_names, what_was_meant
from loldu.errors import LoLDUError

QUERY_AND_VALUE = ("q_proj", "v_proj")


class Adapter(NamedTuple):
    """A PEFT method: its config class, its fixed options, and a step after creation."""

    config: Callable[..., PeftConfig]
    options: Mapping[str, Any] = {}
    finish: Callable[[PeftModel], None] | None = None


def head_only(model: nn.Module, head: Sequence[str]) -> None:
    """Train the head on frozen features: linear probing."""
    model.requires_grad_(False)
    for name in head:
        model.get_submodule(name).requires_grad_(True)


def bias_only(model: nn.Module, head: Sequence[str]) -> None:
    """Train every bias and the head: BitFit.

    Source: Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based
    Masked Language-models", ACL 2022.
    """
    head_only(model, head)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.requires_grad_(True)


Selection = Callable[[nn.Module, Sequence[str]], object]
"""Method that trains some of a model's own weights; it takes the names of the head's modules."""

METHODS: dict[str, Adapter | Selection] = {
    "none": lambda model, _: model.requires_grad_(False),
    "lp": head_only,
    "ft": lambda model, _: model.requires_grad_(True),
    "bitfit": bias_only,
    "lora": Adapter(LoraConfig),
    "pissa": Adapter(LoraConfig, {"init_lora_weights": "pissa"}),
    "adalora": Adapter(AdaLoraConfig),
    "vera": Adapter(VeraConfig),
    "fourierft": Adapter(FourierFTConfig),
    "melora": Adapter(melora_config, finish=cut_into_blocks),
    "loldu": Adapter(LoLDUConfig),
    "svfit": Adapter(LoLDUConfig, {"factorization": "svd"}),
}


def adapt(
    model: PreTrainedModel,
    method: str,
    options: Mapping[str, Any],
    *,
    head: Sequence[str] = (),
    seed: int,
    total_steps: int = 1,
) -> nn.Module:
    """Prepare a model for training with a method.

    Args:
        model: The base; it is changed in place.
        method: A name in `METHODS`.
        options: PEFT's options of the method; the default layers are query and value.
        head: Names of modules that every method trains in full.
        seed: Seed of the method's random start.
        total_steps: Optimizer steps of the training, for AdaLoRA's plan of ranks.

    Returns:
        The model, or PEFT's model around it. Trained parameters are fp32 and require gradients.

    Raises:
        LoLDUError: If the method or an option is unknown, or no layer has a target's name.
    """
    check_method(method, METHODS)
    chosen = METHODS[method]
    torch.manual_seed(seed)
    if not isinstance(chosen, Adapter):
        if options:
            raise LoLDUError(f"The method {method} takes no options, not {', '.join(options)}.")
        chosen(model, head)
        return _in_fp32(model)
    given = {"target_modules": QUERY_AND_VALUE, **chosen.options, **options}
    given["target_modules"] = resolve_targets(model, given["target_modules"])
    if chosen.config is AdaLoraConfig:
        given |= {"total_step": total_steps}
        # PEFT needs steps: prune ranks between a tenth and half of the training.
        given.setdefault("tinit", total_steps // 10)
        given.setdefault("tfinal", total_steps // 2)
    if chosen.config is LoLDUConfig:
        given.setdefault("seed", seed)
    if chosen.config is VeraConfig:  # its frozen matrices have their own seed
        given.setdefault("projection_prng_key", seed)
    if head:
        given["modules_to_save"] = list(head)
    try:
        adapted = get_peft_model(model, chosen.config(**given))
        if chosen.finish:
            chosen.finish(adapted)
    except (TypeError, ValueError) as error:
        raise LoLDUError(f"Invalid options for {method}: {error}.") from error
    return _in_fp32(adapted)


def _in_fp32(model: nn.Module) -> nn.Module:
    """Make trained parameters fp32: half precision loses steps at rates such as 1e-3."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def resolve_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Return the layers that targets mean, also if this model spells their names differently.

    Libraries rename projections at times: transformers 5 calls ViT's `query` `q_proj`.

    Args:
        model: Model to search.
        targets: Names of linear layers, or their ends, such as `output.dense`.

    Raises:
        LoLDUError: If no linear layer has a target's name in any spelling.
    """
    layers = [name for name, part in model.named_modules() if isinstance(part, nn.Linear)]

    def present(target: str) -> bool:
        return any(name == target or name.endswith(f".{target}") for name in layers)

    found = []
    for target in targets:
        spellings = sorted(s for spelling in SPELLINGS if target in spelling for s in spelling)
        matches = [target] if present(target) else [s for s in spellings if present(s)]
        if not matches:
            kind = type(model).__name__
            meant = what_was_meant([target], linear_names(model))
            raise LoLDUError(f"{kind} has no layer called {target}. {meant}")
        found += matches
    return found


def count_parameters(model: nn.Module, head: Sequence[str] = ()) -> tuple[int, int]:
    """Return the numbers of trained parameters outside and inside the head."""
    inside = outside = 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if in_head(name, head):
                inside += parameter.numel()
            else:
                outside += parameter.numel()
    return outside, inside


def in_head(name: str, head: Sequence[str]) -> bool:
    """Return whether a parameter belongs to a head, also inside PEFT's wrappers."""
    return any(re.search(rf"(^|\.){re.escape(module)}\.", name) for module in head)
