"""Default target layers, and suggestions for a name that matches none."""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import difflib
from collections.abc import Collection, Iterable

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

DIFFUSERS_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
DEFAULTS = (DIFFUSERS_ATTENTION, ("q_proj", "v_proj"), ("query", "value"))
"""Names of attention projections; releases of transformers sometimes rename them."""

SPELLINGS = (
    {"to_q", "q_proj", "query", "query_proj", "q_lin", "q"},
    {"to_k", "k_proj", "key", "key_proj", "k_lin", "k"},
    {"to_v", "v_proj", "value", "value_proj", "v_lin", "v"},
    {"to_out.0", "o_proj", "out_proj", "out_lin", "o"},
    {"Wqkv", "qkv", "qkv_proj", "query_key_value", "c_attn", "in_proj"},
)
"""Names of the same projection in different models."""


def linear_names(model: nn.Module) -> set[str]:
    """Return the last part of the full name of every linear layer of a model."""
    names: set[str] = set()
    wrapped: tuple[str, ...] = ()
    for name, part in model.named_modules():
        if not name or name.startswith(wrapped):
            continue
        base = part
        if isinstance(part, BaseTunerLayer):
            base = part.get_base_layer()
            wrapped = (*wrapped, f"{name}.")
        if isinstance(base, nn.Linear | Conv1D):
            parent, _, last = name.rpartition(".")
            # A number is kept with the name of its list.
            names.add(f"{parent.rpartition('.')[2]}.{last}" if last.isdigit() and parent else last)
    return names


def default_targets(
    known: str | Iterable[str] | None, names: Collection[str]
) -> str | set[str] | None:
    """Return the layers to adapt by default, or None if they do not follow from the model.

    Args:
        known: Entry of PEFT's table for the type of the model: names, or a regular expression. It
            is ignored if none of the names exists in the model.
        names: Names of the linear layers of the model.
    """
    if isinstance(known, str):
        return known
    choices = [{*choice} for choice in ([known] if known else []) + [*DEFAULTS]]
    present = [choice for choice in choices if choice & {*names}]
    return present[0] if present else {*known} if known else None


def what_was_meant(targets: str | Iterable[str] | None, names: Collection[str]) -> str:
    """Return a sentence for people that suggests names in place of targets that match nothing.

    Args:
        targets: Names, or a regular expression.
        names: Names of the linear layers of the model.
    """
    near: dict[str, None] = {}
    for target in [] if targets is None or isinstance(targets, str) else sorted(targets):
        last = target.rpartition(".")[2]
        same = [name for spelling in SPELLINGS if {target, last} & spelling for name in spelling]
        near |= dict.fromkeys(sorted({*same} & {*names}))
        near |= dict.fromkeys(difflib.get_close_matches(last, names))
    perhaps = f"Perhaps you meant {', '.join(near)}. " if near else ""
    return f"{perhaps}Its linear layers are named {', '.join(sorted(names)[:30]) or '(none)'}."
