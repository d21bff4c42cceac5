"""Muon: AdamW whose weight matrices take orthogonal steps.

timm and torch have it too, with the iteration in bf16, which a CPU without bf16 computes ten times
slower than fp32.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_MOMENTUM = 0.95
_COEFFICIENTS = (
    (4.0848, -6.8946, 2.9270),
    (3.9505, -6.3029, 2.6377),
    (3.7418, -5.5913, 2.3037),
    (2.8769, -3.1427, 1.2046),
    (2.8366, -3.0525, 1.2012),
)


def orthogonalized(x: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """Return the nearest matrix with equal singular values of about 1.

    Source: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024: five
    Newton-Schulz iterations, with the coefficients of F. L. Cesista et al., "Squeezing 1-2%
    Efficiency Gains Out of Muon by Optimizing the Newton-Schulz Coefficients", 2025.
    """
    y = x.T if len(x) > x.shape[1] else x
    y = y / (y.norm() + 1e-7)
    for a, b, c in _COEFFICIENTS:
        square = y @ y.T
        y = a * y + torch.addmm(square, square, square, beta=b, alpha=c) @ y
    return y.T if len(x) > x.shape[1] else y


class Muon(torch.optim.AdamW):
    """AdamW, except for the groups with ``orthogonal=True``; convolutions are matrices there.

    A step has the size of AdamW's, so both take the same learning rate and weight decay.

    Source: J. Liu et al., "Muon is Scalable for LLM Training", arXiv 2502.16982, Eq. (4).
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take a step; the gradients of matrices are None afterwards."""
        for group in self.param_groups:
            if not group.get("orthogonal"):
                continue
            for weight in group["params"]:
                state = self.state[weight]
                if not state:
                    state["momentum"] = torch.zeros_like(weight)
                    state["step"] = torch.zeros(())  # AdamW looks for it when it loads a state
                momentum = state["momentum"].lerp_(weight.grad, 1 - _MOMENTUM)
                direction = orthogonalized(weight.grad.lerp(momentum, _MOMENTUM).flatten(1))
                size = 0.2 * max(direction.shape) ** 0.5
                weight.mul_(1 - group["lr"] * group["weight_decay"])
                weight.add_(direction.view_as(weight), alpha=-group["lr"] * size)
                weight.grad = None  # AdamW skips it
        super().step()


def muon_groups(module: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Return the optimizer groups of a module: its matrices, and all else with embeddings."""
    tables = {layer.weight for layer in module.modules() if isinstance(layer, nn.Embedding)}
    matrices = [p for p in module.parameters() if p.ndim > 1 and p not in tables]
    others = [p for p in module.parameters() if p.ndim < 2 or p in tables]
    return [
        {"params": matrices, "lr": lr, "orthogonal": True},
        {"params": others, "lr": lr},
    ]
