"""The adapted linear map ``y = W x + b + B (delta ⊙ (A x))`` behind one call.

Two exact routes. The factored one multiplies by A and B and saves only ``A x`` for the backward
pass: neither x nor a factor gradient is needed. The dense one forms ``W + B diag(delta) A`` first,
whatever the number of tokens. The one with fewer multiplications is taken. Where every row of a
batch has a delta of its own, the factored route serves them all in one pass.
"""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


def adapted_linear(
    x: Float[Tensor, "*batch in"],
    base_layer: nn.Module,
    left: Float[Tensor, "out r"],
    delta: Float[Tensor, "*rows r"],
    right: Float[Tensor, "r in"],
) -> Float[Tensor, "*batch out"]:
    """Return ``base_layer(x) + B (delta ⊙ (A x))`` by the cheaper of the two routes.

    Args:
        x: Input of the layer.
        base_layer: The frozen linear layer; its own call computes the base's part, except on the
            dense route.
        left: B.
        delta: Change of the diagonal, in float32 whatever the dtype of the base: one for all, or
            one for every row of the first axis of x.
        right: A.
    """
    if (
        delta.dim() == 1
        and isinstance(base_layer, nn.Linear)
        and _sums_weights_exactly(base_layer, x)
        and _dense_is_cheaper(x, left, delta, right)
    ):
        weight = torch.addmm(base_layer.weight, left * delta.to(left.dtype), right)
        return F.linear(x, weight, base_layer.bias)
    return factored_update(x, base_layer(x), left, delta, right)


def factored_update(
    x: Float[Tensor, "*batch in"],
    base_output: Float[Tensor, "*batch out"],
    left: Float[Tensor, "out r"],
    delta: Float[Tensor, "*rows r"],
    right: Float[Tensor, "r in"],
) -> Float[Tensor, "*batch out"]:
    """Return ``base_output + B (delta ⊙ (A x))``, computed in the dtype of the base's output.

    A delta for every row of the first axis of x costs what one delta costs.
    """
    dtype = base_output.dtype
    return _FactoredUpdate.apply(
        x.to(dtype), base_output, left.to(x.device, dtype), delta, right.to(x.device, dtype)
    )


def _sums_weights_exactly(base_layer: nn.Linear, x: Tensor) -> bool:
    """Whether the dense route may replace the base layer's own call.

    In half precision a small delta would be rounded away when it is added to W, and a layer with
    hooks (offloading) or a class of its own (quantization) computes its output its own way.
    """
    return (
        type(base_layer) is nn.Linear
        and x.dtype == base_layer.weight.dtype
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled(x.device.type)
        and not base_layer._forward_hooks  # pyright: ignore[reportPrivateUsage]
        and not base_layer._forward_pre_hooks  # pyright: ignore[reportPrivateUsage]
        and not hasattr(base_layer, "_hf_hook")
    )


def _dense_is_cheaper(
    x: Float[Tensor, "*batch in"],
    left: Float[Tensor, "out r"],
    delta: Float[Tensor, " r"],
    right: Float[Tensor, "r in"],
) -> bool:
    """Compare the multiplications the two routes add to the frozen layer's own."""
    (out_features, r), in_features = left.shape, right.shape[1]
    tokens = x.numel() // in_features
    form = out_features * r * in_features
    factored = tokens * r * (in_features + out_features)
    if torch.is_grad_enabled() and (x.requires_grad or delta.requires_grad):
        # Backward: the full weight gradient and its contraction, against two more thin products.
        return 2 * form + tokens * in_features * out_features < 2 * factored
    return form < factored


class _FactoredUpdate(torch.autograd.Function):
    """``y + B (delta ⊙ (A x))`` with ``dL/ddelta = Σ_tokens (Bᵀ g) ⊙ (A x)``.

    One delta is that of a single row which all tokens are in.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        base_output: Tensor,
        left: Tensor,
        delta: Tensor,
        right: Tensor,
    ) -> Tensor:
        hidden = x.reshape(-1, x.shape[-1]) @ right.T
        scaled = _scale_rows(hidden, delta).to(hidden.dtype)
        flat = base_output.reshape(-1, base_output.shape[-1])
        ctx.save_for_backward(hidden, left, delta, right)
        return torch.addmm(flat, scaled, left.T).view_as(base_output)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        grad: Tensor,
    ) -> tuple[Tensor | None, ...]:
        hidden, left, delta, right = ctx.saved_tensors
        needs_x, needs_base, _, needs_delta, _ = ctx.needs_input_grad
        grad_hidden = grad.reshape(-1, grad.shape[-1]) @ left
        grad_x = grad_delta = None
        if needs_delta:
            # delta is float32 at least: the sum over all tokens must not be rounded on the way.
            of_tokens = grad_hidden.to(delta.dtype) * hidden.to(delta.dtype)
            grad_delta = _by_row(of_tokens, delta).sum(1).view_as(delta)
        if needs_x:
            scaled = _scale_rows(grad_hidden, delta).to(right.dtype)
            grad_x = (scaled @ right).view(*grad.shape[:-1], right.shape[1])
        return grad_x, grad if needs_base else None, None, grad_delta, None


def _by_row(hidden: Float[Tensor, "all r"], delta: Tensor) -> Float[Tensor, "rows tokens r"]:
    rows = delta.numel() // hidden.shape[1]
    return hidden.view(rows, hidden.shape[0] // rows, hidden.shape[1])


def _scale_rows(hidden: Float[Tensor, "all r"], delta: Tensor) -> Float[Tensor, "all r"]:
    return (_by_row(hidden, delta) * delta.view(-1, 1, hidden.shape[1])).view_as(hidden)
