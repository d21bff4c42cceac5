"""The weight of a base layer as a matrix, whatever its layout and quantization."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false
# pyright: reportMissingImports=false

import warnings
from typing import Any

import torch
from jaxtyping import Float, Shaped
from peft.utils.quantization_utils import (
    Bnb4bitBackend,
    Bnb8bitBackend,
    QuantizationBackend,
    TorchaoBackend,
    get_quantization_kwargs,
    resolve_quantization_backend,
)
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def is_linear_map(base: nn.Module) -> bool:
    """Return whether a layer is a linear map: its weight is a matrix, and it does nothing else."""
    if isinstance(base, nn.Conv2d):
        return base.groups == 1
    if isinstance(base, nn.Embedding):
        return base.max_norm is None
    return isinstance(base, nn.Linear | Conv1D)


def features_of(base: nn.Module) -> tuple[int, int]:
    """Return the number of rows and columns of W; an embedding has a row for every token."""
    if isinstance(base, nn.Linear):
        # A quantized weight has the shape of its bytes.
        return base.out_features, base.in_features
    weight: Any = base.weight
    rows, columns = as_matrix(base, weight).shape
    return rows, columns


def as_matrix(base: nn.Module, weight: Shaped[Tensor, "..."]) -> Shaped[Tensor, "out in"]:
    """Return W from a stored weight: kernels are flattened, GPT-2's Conv1D stores Wᵀ."""
    return weight.T if isinstance(base, Conv1D) else weight.flatten(1)


def as_stored(base: nn.Module, matrix: Float[Tensor, "out in"]) -> Float[Tensor, "..."]:
    """Return a matrix in the layout of the weight of a base layer."""
    if isinstance(base, Conv1D):
        return matrix.T
    return matrix.unflatten(1, base.weight.shape[1:]) if isinstance(base, nn.Conv2d) else matrix


def dtype_name(weight: Tensor) -> str:
    """Return the name of a dtype, such as "float32"."""
    return str(weight.dtype).removeprefix("torch.")


def quantization_of(base: nn.Module, model: nn.Module | None = None) -> QuantizationBackend | None:
    """Return how a base layer is quantized, or None for a layer of floating numbers.

    Args:
        base: The layer.
        model: The model that contains it and knows how to quantize again after a merge.

    Raises:
        TypeError: If the weight cannot be read as a matrix of floating numbers.
    """
    again = {} if model is None else get_quantization_kwargs(model)
    # PEFT insists on knowing how torchao quantizes again, which only a merge needs.
    backend = resolve_quantization_backend(base, **{"get_apply_tensor_subclass": object} | again)
    weight: Any = base.weight
    if backend is None and (weight.is_floating_point() or weight.is_meta):
        return None
    if isinstance(backend, TorchaoBackend):
        backend.supports_merge = backend.supports_merge and bool(again)
    elif isinstance(backend, Bnb4bitBackend):
        backend = _FourBits()
    elif not isinstance(backend, Bnb8bitBackend):
        name = backend.backend_name if backend else dtype_name(weight)
        raise TypeError(f"is quantized ({name}) in a way that loldu cannot read")
    if not isinstance(backend, TorchaoBackend) and weight.is_floating_point():
        raise TypeError("is not quantized yet, which bitsandbytes does when it moves to a device")
    return backend


class _FourBits(Bnb4bitBackend):
    """Read bitsandbytes' 4-bit weights, also in the layout that its CPU kernels use."""

    def get_base_weight(self, base_layer: nn.Module) -> Tensor:
        weight: Any = base_layer.weight
        if not getattr(weight.quant_state, "packing_format_for_cpu", False):
            return super().get_base_weight(base_layer)
        # On CPUs that multiply in bfloat16, evaluation rearranges the weight and rounds its scales.
        # Dequantizing cannot read that layout; multiplying can.
        from bitsandbytes import matmul_4bit

        eye = torch.eye(weight.quant_state.shape[1], dtype=torch.bfloat16, device=weight.device)
        return matmul_4bit(eye, weight.data, quant_state=weight.quant_state).T.contiguous()


def weight_matrix(base: nn.Module) -> Float[Tensor, "out in"] | None:
    """Return the dequantized weight of a layer without an adapter; None if it has no matrix."""
    if not is_linear_map(base):
        return None
    try:
        backend = quantization_of(base)
    except TypeError:
        return None
    weight: Any = base.weight
    return as_matrix(base, weight.data if backend is None else backend.get_base_weight(base))


def check_requantizable(quantization: QuantizationBackend, layer_name: str) -> None:
    """Warn that a merge into a quantized layer rounds.

    Raises:
        ValueError: If it is not known how to quantize the layer again.
    """
    if not quantization.supports_merge:
        raise ValueError(
            f"layer '{layer_name}' is quantized ({quantization.backend_name}), and it is not known "
            "how to do that again after a merge: load the base by transformers with a "
            "quantization_config, or without quantization"
        )
    warnings.warn(
        f"merging rounds the changed weights to {quantization.backend_name} again, which may lose "
        "much of the change: a live adapter, or an exported LoRA, keeps all of it",
        stacklevel=3,
    )


def fingerprint(weight: Float[Tensor, "out in"]) -> Float[Tensor, "3"]:
    """Return three numbers that identify a weight: its norm and two projections.

    ``(‖W‖, u₁ᵀ W v₁, u₂ᵀ W v₂)`` with fixed cosine vectors, in float64. Unlike a hash it moves only
    by the rounding when the same base is loaded in another dtype.
    """
    exact = weight.detach().cpu().to(torch.float64)
    rows = torch.arange(1, exact.shape[0] + 1, dtype=torch.float64)
    columns = torch.arange(1, exact.shape[1] + 1, dtype=torch.float64)
    first = torch.cos(rows) @ exact @ torch.cos(2 * columns)
    second = torch.cos(3 * rows) @ exact @ torch.cos(columns)
    return torch.stack([exact.norm(), first, second]).to(torch.float32)
