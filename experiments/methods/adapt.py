"""Puts a method on a model: an adapter on its projections, or a choice of its weights."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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

from experiments.methods.melora import cut_into_blocks, melora_config
from experiments.methods.selective import bias_only, everything, head_only, nothing
from loldu import LoLDUConfig
from loldu.adapter.targets import SPELLINGS, linear_names, what_was_meant
from loldu.errors import LoLDUError, hint

QUERY_AND_VALUE = ("q_proj", "v_proj")


@dataclass(frozen=True)
class Adapter:
    """A method of PEFT: its configuration, the options that make it this method, a last touch."""

    config: Callable[..., PeftConfig]
    options: Mapping[str, Any]
    finish: Callable[[PeftModel], None] | None = None


@dataclass(frozen=True)
class Selective:
    """A method that trains some of the model's own weights: chooses them, by name."""

    trains: Callable[[nn.Module, Sequence[str]], None]


METHODS: dict[str, Adapter | Selective] = {
    "none": Selective(nothing),
    "lp": Selective(head_only),
    "ft": Selective(everything),
    "bitfit": Selective(bias_only),
    "lora": Adapter(LoraConfig, {}),
    "pissa": Adapter(LoraConfig, {"init_lora_weights": "pissa"}),
    "adalora": Adapter(AdaLoraConfig, {}),
    "vera": Adapter(VeraConfig, {}),
    "fourierft": Adapter(FourierFTConfig, {}),
    "melora": Adapter(melora_config, {}, cut_into_blocks),
    "loldu": Adapter(LoLDUConfig, {}),
    "svfit": Adapter(LoLDUConfig, {"factorization": "svd"}),
}


def check_method(name: str, known: Collection[str] = METHODS) -> None:
    """Make sure that a method is known.

    Raises:
        LoLDUError: It is not.
    """
    if name not in known:
        perhaps = hint(name, known)
        raise LoLDUError(f"There is no method {name}; {perhaps}.")


def adapt(
    model: PreTrainedModel,
    method: str,
    options: Mapping[str, Any],
    *,
    head: Sequence[str] = (),
    seed: int,
    total_steps: int = 1,
) -> nn.Module:
    """Make a model ready for training by a method.

    Args:
        model: The base; it is changed in place.
        method: A name of `METHODS`.
        options: PEFT's, of the method; its layers are query and value unless they say others.
        head: Names of the modules that every method trains in full.
        seed: Of what the method draws at random.
        total_steps: Optimizer steps of the training, which AdaLoRA plans its ranks by.

    Returns:
        The model, or PEFT's model around it; what is trained is fp32 and requires gradients.

    Raises:
        LoLDUError: The method or an option is unknown, or no layer has the name of a target.
    """
    check_method(method)
    chosen = METHODS[method]
    torch.manual_seed(seed)
    if isinstance(chosen, Selective):
        if options:
            raise LoLDUError(f"The method {method} takes no options, not {', '.join(options)}.")
        chosen.trains(model, head)
        return _in_fp32(model)
    given = {"target_modules": QUERY_AND_VALUE, **chosen.options, **options}
    given["target_modules"] = resolve_targets(model, given["target_modules"])
    if chosen.config is AdaLoraConfig:
        given |= {"total_step": total_steps}
        # PEFT asks for steps: ranks are cut from a tenth of the training on until its half.
        given.setdefault("tinit", total_steps // 10)
        given.setdefault("tfinal", total_steps // 2)
    if chosen.config is LoLDUConfig:
        given.setdefault("seed", seed)
    if chosen.config is VeraConfig:  # whose frozen matrices have a seed of their own
        given.setdefault("projection_prng_key", seed)
    if head:
        given["modules_to_save"] = list(head)
    try:
        adapted = get_peft_model(model, chosen.config(**given))
        if chosen.finish:
            chosen.finish(adapted)
    except (TypeError, ValueError) as error:
        raise LoLDUError(f"The options of {method} cannot be: {error}.") from error
    return _in_fp32(adapted)


def _in_fp32(model: nn.Module) -> nn.Module:
    """What is trained, in fp32: steps of a rate such as 1e-3 get lost in half precision."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def resolve_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """The layers that are meant: a projection may be called otherwise in this model.

    Libraries rename projections at times; transformers 5 calls ViT's `query` `q_proj`.

    Args:
        model: Where they are looked for.
        targets: Names of linear layers, or ends of them, such as `output.dense`.

    Raises:
        LoLDUError: A name is that of no linear layer, in any spelling.
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
            raise LoLDUError(f"No layer of {kind} is called {target}. {meant}")
        found += matches
    return found
