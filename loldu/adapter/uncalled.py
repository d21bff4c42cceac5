"""Modules that read the weight of a layer and do not call it, which would ignore its adapters."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loldu.adapter.layer import LoLDULayer

FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}
"""Layers that diffusers' `fuse_projections` makes, and those whose weights it copies."""

MAMBA = ("falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h")
"""Types of models whose kernels multiply by the weight of `out_proj` themselves."""


def require_called(parent: nn.Module, name: str, layer_name: str, model: nn.Module) -> None:
    """Check that a layer takes effect by being called.

    Args:
        parent: The module that contains the layer.
        name: Name of the layer in it.
        layer_name: Full name of the layer.
        model: The whole model.

    Raises:
        TypeError: If its parent may read its weight instead.
    """
    reader = type(parent).__name__ if isinstance(parent, nn.MultiheadAttention) else ""
    kind = getattr(getattr(model, "config", None), "model_type", None)
    if kind in MAMBA and name == "out_proj":
        reader = f"the kernel of {kind}"
    if reader:
        raise TypeError(
            f"target module '{layer_name}' is read by {reader} without being called, so an adapter "
            "would change nothing: name it in exclude_modules"
        )


def follow_readers(parent: nn.Module, model: nn.Module) -> None:
    """Make a module that can read the weights of its layers call the adapted ones instead.

    diffusers' attention copies weights when its projections are fused. PyTorch's encoder layer has
    a fast path for evaluation that reads them. These two attributes of PyTorch's turn it off.
    """
    if isinstance(parent, nn.TransformerEncoderLayer):
        parent.activation_relu_or_gelu = 0
        for encoder in model.modules():
            if isinstance(encoder, nn.TransformerEncoder) and parent in [*encoder.layers]:
                encoder.use_nested_tensor = False
    if hasattr(type(parent), "fuse_projections"):
        attention: Any = parent
        attention.fuse_projections = partial(_fuse, parent)
        _call_fused(parent)


def leave_readers(parent: nn.Module) -> None:
    """Give a module without adapted layers its own `fuse_projections` again."""
    if not any(isinstance(child, LoLDULayer) for child in parent.children()):
        vars(parent).pop("fuse_projections", None)


def _fuse(attention: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
    type(attention).fuse_projections(attention, *args, **kwargs)
    _call_fused(attention)


def _call_fused(attention: nn.Module) -> None:
    for fused, names in FUSED.items():
        layers = [getattr(attention, name, None) for name in names]
        if isinstance(getattr(attention, fused, None), nn.Linear) and any(
            isinstance(layer, LoLDULayer) for layer in layers
        ):
            setattr(attention, fused, FusedProjections(attention, names))


class FusedProjections(nn.Module):
    """The projections of an attention layer in one call, each by its own layer.

    It follows whatever happens to the layers. It has no weight, and saves no time.
    """

    def __init__(self, attention: nn.Module, names: tuple[str, ...]) -> None:
        """Find the layers by name in every call."""
        super().__init__()
        # In a tuple, so that they stay submodules of the attention layer alone.
        self.layers = attention, names

    def forward(self, x: Float[Tensor, "*batch in"]) -> Float[Tensor, "*batch out"]:
        """Return the outputs of the layers side by side."""
        attention, names = self.layers
        return torch.cat([getattr(attention, name)(x) for name in names], -1)
