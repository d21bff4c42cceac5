"""torch.compile, in place: modules, weights and their names stay what they are."""

from contextlib import AbstractContextManager

import torch
from diffusers import UNet2DConditionModel

from trainer.options.config import Compile


def compile_unet(unet: UNet2DConditionModel, how: Compile) -> None:
    """Compile the UNet, or its transformer blocks, at the first call."""
    if how == "blocks":
        unet.compile_repeated_blocks()
    elif how == "unet":
        unet.compile()


def uncompiled() -> AbstractContextManager[object]:
    """Let what was compiled run as it is written: a few pictures are not worth new graphs."""
    return torch.compiler.set_stance("force_eager")
