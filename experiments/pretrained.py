"""Base models: errors for those that cannot be loaded, and digests of their weights."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from loldu.errors import LoLDUError


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


@contextmanager
def fetching(model: str) -> Iterator[None]:
    """Turn a failure to load a model or its tokenizer into one sentence.

    Raises:
        LoLDUError: If the model is neither a local folder nor on the hub.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        raise LoLDUError(
            f"The model {model} is neither a local folder nor available on the Hugging Face hub: "
            "check its name and the network; a gated one, such as LLaMA, needs its licence "
            f"accepted there and `hf auth login` ({first_line(error)})."
        ) from error


def facts_of(model: PreTrainedModel) -> dict[str, Any]:
    """Return the digest and the number of parameters of a base model, without its head."""
    bare: nn.Module = model.base_model
    return {
        "base": _digest(bare),
        "base_parameters": sum(parameter.numel() for parameter in bare.parameters()),
    }


def _digest(model: nn.Module) -> str:
    """Return the first digits of a SHA-256 over names and bytes of all weights."""
    sha = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().cpu().contiguous().flatten()
        sha.update(name.encode() + flat.view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()[:16]
