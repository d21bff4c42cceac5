"""The models that are adapted: had by name, told apart by a digest of their weights."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from loldu.errors import LoLDUError


@contextmanager
def fetching(model: str) -> Iterator[None]:
    """Say in one sentence that a model, or its tokenizer, cannot be had.

    Raises:
        LoLDUError: It is not here, and the hub does not give it.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        first_line = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise LoLDUError(
            f"The model {model} is neither a folder here nor to be had from the Hugging Face hub: "
            "check its name and the network; a gated one, such as LLaMA, needs its licence "
            f"accepted there and `hf auth login` ({first_line})."
        ) from error


def facts_of(model: PreTrainedModel) -> dict[str, Any]:
    """What a result tells of its base, without the head: digest and number of parameters."""
    bare: nn.Module = model.base_model
    return {
        "base": _digest(bare),
        "base_parameters": sum(parameter.numel() for parameter in bare.parameters()),
    }


def _digest(model: nn.Module) -> str:
    """The first digits of a SHA-256 over names and bytes of all weights."""
    sha = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().cpu().contiguous().flatten()
        sha.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
