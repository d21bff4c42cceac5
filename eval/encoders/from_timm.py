"""Encoders of the timm library."""

from typing import Any

import timm
import torch
from torch import Tensor

from eval.encoders.encoder import TokenEncoder
from eval.encoders.preprocess import published_dino


class TimmDino(TokenEncoder):
    """A timm vision transformer, ``architecture.tag`` or ``architecture/file``: its CLS token.

    timm's own transform resizes to 248 pixels; the published one is used instead.
    """

    library = "timm"

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        """Load the model in fp32."""
        self.name = f"timm:{name}"
        architecture, _, file = name.partition("/")
        loaded: Any = timm.create_model(
            architecture,
            pretrained=not file,
            num_classes=0,
            checkpoint_path=file,
        )
        self.model = loaded.eval()
        self.to(device)
        self.preprocess = published_dino(loaded.patch_embed.img_size[0])

    @property
    def prefix(self) -> int:
        """Number of tokens before those of the patches."""
        return self.model.num_prefix_tokens

    def _tokens(self, pixels: Tensor) -> Tensor:
        return self.model.forward_features(pixels)
