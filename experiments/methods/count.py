"""Counts trained parameters, without the head as in the paper."""

import re
from collections.abc import Sequence

from torch import nn


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
