"""The adapted linear map ``y = W x + b + B (delta ⊙ (A x))`` behind one call.

Two exact routes. The factored one multiplies by A and B and saves only ``A x`` for the backward
pass: it needs neither x nor the gradient of a factor. The dense one forms ``W + B diag(delta) A``
first, whatever the number of tokens. The cheaper one is taken. If every row of a batch, or every
token, has its own delta, the factored route serves all rows in one pass.

Plain calls run the factored route as one autograd function. Compilers, tracers and the transforms
of `torch.func` get the same operations one by one.
"""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false, reportPrivateImportUsage=false

from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad

from loldu.adapter.shared_factors import SharedFactors

Route = Literal["factored", "dense"]


def adapted_linear(
    x: Float[Tensor, "*batch in"],
    base_layer: nn.Module,
    factors: SharedFactors,
    delta: Float[Tensor, "*rows r"],
) -> Float[Tensor, "*batch out"]:
    """Return ``base_layer(x) + B (delta ⊙ (A x))`` by the cheaper of the two routes.

    Args:
        x: Input of the layer.
        base_layer: The frozen linear layer. One that is not plain (quantized, offloaded, hooked,
            in another dtype than x, trained itself) computes its part in its own call.
        factors: A and B.
        delta: Change of the diagonal, in float32 whatever the dtype of the base: one for all, one
            for every row of the first axis of x, or one for every token of every row.
    """
    if (
        not isinstance(base_layer, nn.Linear)
        or not _is_plain(base_layer, x)
        or factors.left.device != x.device
    ):
        return factored_update(x, base_layer(x), *factors.around(delta))
    weight, bias = base_layer.weight, _bias_of(base_layer)
    x = x.to(weight.dtype)
    route = cheapest_route(x, factors, delta)
    left, delta, right = factors.around(delta)
    linear = dense_linear if route == "dense" else factored_linear
    return linear(x, weight, bias, left, delta, right)


def factored_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    left: Float[Tensor, "out r"],
    delta: Float[Tensor, "*rows r"],
    right: Float[Tensor, "r in"],
) -> Float[Tensor, "*batch out"]:
    """Return ``W x + b + B (delta ⊙ (A x))`` as written, of a frozen W and b."""
    return _update(x, None, weight, bias, left, delta, right)


def dense_linear(
    x: Float[Tensor, "*batch in"],
    weight: Float[Tensor, "out in"],
    bias: Float[Tensor, " out"] | None,
    left: Float[Tensor, "out r"],
    delta: Float[Tensor, " r"],
    right: Float[Tensor, "r in"],
) -> Float[Tensor, "*batch out"]:
    """Return ``(W + B diag(delta) A) x + b``."""
    return F.linear(x, torch.addmm(weight, left * delta.to(left.dtype), right), bias)


def factored_update(
    x: Float[Tensor, "*batch in"],
    base_output: Float[Tensor, "*batch out"],
    left: Float[Tensor, "out r"],
    delta: Float[Tensor, "*rows r"],
    right: Float[Tensor, "r in"],
    dropout: float = 0.0,
) -> Float[Tensor, "*batch out"]:
    """Return ``base_output + B (delta ⊙ (A x))``, computed in the dtype of the base's output.

    A delta for every row of the first axis of x, or for every token of every row, costs what one
    delta costs.

    Args:
        x: Input of the layer.
        base_output: ``W x + b``.
        left: B.
        delta: Change of the diagonal, one for all, for every row, or for every token of every row.
        right: A.
        dropout: Share of the entries of ``A x`` that are set to zero, the rest being scaled up.
    """
    dtype = base_output.dtype
    x, left, right = x.to(dtype), left.to(x.device, dtype), right.to(x.device, dtype)
    if not dropout:
        return _update(x, base_output, None, None, left, delta, right)
    hidden = F.dropout(F.linear(x, right), dropout).reshape(-1, right.shape[0])
    change = F.linear(_scale_rows(hidden, delta).to(dtype), left)
    return base_output + change.view_as(base_output)


def cheapest_route(
    x: Float[Tensor, "*batch in"],
    factors: SharedFactors,
    delta: Float[Tensor, "*rows r"],
) -> Route:
    """Compare the multiplications that the routes add to a plain frozen layer's own.

    In half precision no route may add delta_W to W, which would round a small delta away.

    In a graph for any number of tokens, the first number decides: comparing symbols would tie the
    graph to one side of the comparison.
    """
    r, in_features = delta.shape[-1], factors.right.shape[1]
    out_features = factors.left.shape[0]
    tokens = _tokens(x)
    can_be_dense = x.dtype in (torch.float32, torch.float64) and delta.dim() == 1
    form = out_features * r * in_features
    costs: dict[Route, int] = {"factored": tokens * r * (in_features + out_features)}
    if torch.is_grad_enabled() and (x.requires_grad or delta.requires_grad):
        # Backward: two more thin products, or the full weight gradient and its contraction.
        costs["factored"] *= 2
        form = 2 * form + tokens * in_features * out_features
    if can_be_dense:
        costs["dense"] = form
    return min(costs, key=costs.__getitem__)


def _tokens(x: Tensor) -> int:
    """Return how many tokens x has; in a graph for any number, those of the first call."""
    if torch.jit.is_tracing():
        return 1
    tokens = x.numel() // x.shape[-1]
    if torch.compiler.is_compiling():
        from torch.fx.experimental.symbolic_shapes import optimization_hint

        return optimization_hint(tokens, 1)
    return tokens


def _is_plain(base_layer: nn.Linear, x: Tensor) -> bool:
    """Return whether the base layer's call is just ``W x + b``, and neither needs a gradient."""
    device, dtype = x.device.type, x.dtype
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    weight, bias = base_layer.weight, _bias_of(base_layer)
    return (
        type(base_layer) is nn.Linear
        and weight.dtype == dtype
        and weight.device == x.device
        and not (torch.is_grad_enabled() and (weight.requires_grad or _needs_gradient(bias)))
        and not any(map(vars(base_layer).get, _HOOKS))
    )


def _needs_gradient(bias: Tensor | None) -> bool:
    return bias is not None and bias.requires_grad


def _bias_of(base_layer: nn.Linear) -> Tensor | None:
    return base_layer.bias


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "forward",  # Its own in place of the class's, as offloading gives it.
)


def _update(*operands: Tensor | None) -> Tensor:
    if _is_transformed():
        return _factored(*operands)[0]  # pyright: ignore[reportArgumentType]
    if torch.is_grad_enabled():
        return _Factored.apply(*operands)[0]
    return _factored(*operands, in_place=True)[0]  # pyright: ignore[reportArgumentType]


def _is_transformed() -> bool:
    """Return whether a compiler, a tracer, `torch.func` or forward-mode AD follows the call."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
        or forward_ad._current_level >= 0  # pyright: ignore[reportPrivateUsage]
    )


def _factored(
    x: Tensor,
    base_output: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    left: Tensor,
    delta: Tensor,
    right: Tensor,
    *,
    in_place: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return ``y + B (delta ⊙ (A x))`` and ``A x``; y is given, or computed here from W and b."""
    flat = x.reshape(-1, x.shape[-1])
    hidden = flat @ right.T
    scaled = _scale_rows(hidden, delta).to(hidden.dtype)
    if weight is None:
        assert base_output is not None
        output = torch.addmm(base_output.reshape(-1, left.shape[0]), scaled, left.T)
    elif in_place:
        output = F.linear(flat, weight, bias).addmm_(scaled, left.T)
    else:
        output = F.linear(flat, weight, bias).addmm(scaled, left.T)
    return output.view(*x.shape[:-1], left.shape[0]), hidden


class _Factored(torch.autograd.Function):
    """``y + B (delta ⊙ (A x))`` with ``dL/ddelta = Σ_tokens (Bᵀ g) ⊙ (A x)``, and ``A x``.

    The base's part y is given, or computed here from a frozen W and b: then the update is added
    to y, and to the gradient ``Wᵀ g`` of x, in place.

    ``A x`` is an output, so that a gradient of the gradient reaches x through it without x being
    kept.
    """

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        x: Tensor,
        base_output: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        left: Tensor,
        delta: Tensor,
        right: Tensor,
    ) -> tuple[Tensor, Tensor]:
        output, hidden = _factored(x, base_output, weight, bias, left, delta, right, in_place=True)
        ctx.shape = x.shape
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(hidden, weight, left, delta, right)
        return output, hidden

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,  # noqa: ANN401
        grad: Tensor | None,
        grad_read: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, left, delta, right = ctx.saved_tensors
        needs_x, needs_base, _, _, _, needs_delta, _ = ctx.needs_input_grad
        grad_x = grad_delta = None
        if grad is not None:
            flat = grad.reshape(-1, grad.shape[-1])
            grad_hidden = flat @ left
            if needs_delta:
                # delta is float32 at least: the sum over all tokens must not be rounded on the way.
                of_tokens = grad_hidden.to(delta.dtype) * hidden.to(delta.dtype)
                grad_delta = _sum_rows(of_tokens, delta)
            if needs_x:
                scaled = _scale_rows(grad_hidden, delta).to(right.dtype)
                grad_x = scaled @ right if weight is None else (flat @ weight).addmm_(scaled, right)
        if needs_x and grad_read is not None:
            of_read = grad_read @ right
            grad_x = of_read if grad_x is None else grad_x + of_read
        grad_x = grad_x if grad_x is None else grad_x.view(ctx.shape)
        return grad_x, grad if needs_base else None, None, None, None, grad_delta, None


def _scale_rows(
    hidden: Float[Tensor, "all r"], delta: Float[Tensor, "*rows r"]
) -> Float[Tensor, "all r"]:
    if delta.dim() == 1:
        return hidden * delta
    if delta.dim() == 3:
        return hidden * delta.flatten(0, 1)
    return (hidden.unflatten(0, (len(delta), -1)) * delta[:, None]).flatten(0, 1)


def _sum_rows(
    of_tokens: Float[Tensor, "all r"], delta: Float[Tensor, "*rows r"]
) -> Float[Tensor, "*rows r"]:
    if delta.dim() == 1:
        return of_tokens.sum(0)
    if delta.dim() == 3:
        return of_tokens.view_as(delta)
    return of_tokens.unflatten(0, (len(delta), -1)).sum(1)
