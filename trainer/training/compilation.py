"""torch.compile, in place: modules, weights and their names stay what they are."""

from contextlib import AbstractContextManager

import torch
from diffusers import ModelMixin

from trainer.options.config import Compile


def compile_network(network: ModelMixin, how: Compile) -> None:
    """Compile the network, or its transformer blocks, at the first call."""
    if how == "blocks":
        network.compile_repeated_blocks()
    elif how == "unet":
        network.compile()


def uncompiled() -> AbstractContextManager[object]:
    """Let what was compiled run as it is written: a few pictures are not worth new graphs."""
    return torch.compiler.set_stance("force_eager")
