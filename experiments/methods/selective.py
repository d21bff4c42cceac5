"""Methods that train a part of the model's own weights."""

from collections.abc import Sequence

from torch import nn


def nothing(model: nn.Module, head: Sequence[str]) -> None:
    """Train nothing, not even a head."""
    model.requires_grad_(False)


def everything(model: nn.Module, head: Sequence[str]) -> None:
    """Train all weights: full fine-tuning."""
    model.requires_grad_(True)


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
