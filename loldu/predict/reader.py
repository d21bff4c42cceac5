"""The network that reads the numbers of a concept off any number of pictures."""

# torch and transformers are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, ViTConfig
from transformers.image_processing_base import ImageProcessingMixin

from loldu.concept.metadata import shown

BACKBONES: dict[str, tuple[str, dict[str, bool]]] = {
    "vit": ("ViTModel", {"add_pooling_layer": False}),
    "dinov2": ("Dinov2Model", {}),
    "dinov2_with_registers": ("Dinov2WithRegistersModel", {}),
}
"""By model type of transformers: the class of a backbone, and its options."""
_HEADS = 4
_GAIN = 4.0
"""Factor on the last layer: a concept's numbers are far larger than a step of its weights."""


@dataclass(frozen=True)
class ReaderConfig:
    """The sizes of a reader.

    Attributes:
        numbers: Numbers of a concept.
        backbone: Config of a vision transformer, as transformers writes it.
        picture_px: Side of the pictures.
        mean: Mean of the backbone's pixels in [0, 1], by channel.
        std: Their standard deviation.
        width: Width of the attention that pools the tokens.
        queries: Number of vectors that the tokens are pooled to.
        embedding: Width of the vector that describes a concept.
        spread: Whether that vector has a spread, from which other concepts can be drawn.
    """

    numbers: int
    backbone: dict[str, Any] = field(default_factory=dict[str, Any])
    picture_px: int = 64
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    width: int = 128
    queries: int = 16
    embedding: int = 256
    spread: bool = False


class Reading(NamedTuple):
    """The answer of a reader.

    Attributes:
        numbers: The numbers of every concept, in the units of its directions.
        divergence: Divergence of the spread from a standard normal distribution; 0 without one.
    """

    numbers: Float[Tensor, "things numbers"]
    divergence: Float[Tensor, " things"]


class PictureReader(nn.Module):
    """Pictures of a thing to the numbers of its concept; their order does not matter.

    A vision transformer turns every picture into tokens. Learned queries attend to the tokens of
    all pictures together, so any number of pictures will do.
    """

    def __init__(self, config: ReaderConfig) -> None:
        """Make a reader with random weights, which predicts zeros: the base itself.

        Raises:
            ValueError: If the backbone is of an unknown kind.
        """
        super().__init__()
        self.config, width, embedding = config, config.width, config.embedding
        self.backbone = _backbone(config.backbone)
        self.tokens = nn.Sequential(
            nn.Linear(self.backbone.config.hidden_size, width), nn.LayerNorm(width)
        )
        self.queries = nn.Parameter(torch.randn(config.queries, width) / width**0.5)
        self.attention = nn.MultiheadAttention(width, _HEADS, batch_first=True)
        self.describe = nn.Sequential(
            nn.Linear(config.queries * width, 2 * embedding),
            nn.GELU(),
            nn.Linear(2 * embedding, embedding * (2 if config.spread else 1)),
        )
        self.decode = nn.Sequential(
            nn.LayerNorm(embedding), nn.Linear(embedding, embedding), nn.GELU()
        )
        self.out = nn.Linear(embedding, config.numbers)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(
        self,
        pixels: Float[Tensor, "things pictures 3 height width"],
        noise: Float[Tensor, "things embedding"] | None = None,
    ) -> Reading:
        """Read the concepts of several things.

        Args:
            pixels: Pictures of every thing, in [-1, 1].
            noise: Standard normal noise that draws from the spread; the mean without it.
        """
        things = len(pixels)
        channels = self.config.mean, self.config.std
        mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in channels)
        normal = ((pixels.flatten(0, 1) + 1) / 2 - mean) / std
        found = self.backbone(pixel_values=normal).last_hidden_state
        tokens = self.tokens(found.unflatten(0, (things, -1)).flatten(1, 2))
        queries = self.queries.expand(things, -1, -1)
        pooled, _ = self.attention(queries, tokens, tokens, need_weights=False)
        described = self.describe(pooled.flatten(1))
        divergence = described.new_zeros(things)
        if self.config.spread:
            described, log_std = described.chunk(2, dim=1)
            both = described.square() + (2 * log_std).exp() - 2 * log_std - 1
            divergence = both.sum(1) / 2
            if noise is not None:
                described = described + log_std.exp() * noise
        return Reading(_GAIN * self.out(self.decode(described)), divergence)


def new_reader(config: ReaderConfig, backbone: str | None = None) -> PictureReader:
    """Return a reader to train, with a new small backbone or a pretrained one.

    Args:
        config: The sizes; the backbone's own decide about the pictures if it is pretrained.
        backbone: Folder or hub id of a ViT or DINOv2, which reads pictures of its own size.

    Raises:
        OSError: If there is no such backbone.
        ValueError: If it is of an unknown kind.
    """
    if backbone is None:
        small = ViTConfig(
            hidden_size=128,
            intermediate_size=512,
            num_hidden_layers=4,
            num_attention_heads=_HEADS,
            image_size=config.picture_px,
            patch_size=config.picture_px // 8,
        )
        return PictureReader(replace(config, backbone=small.to_dict()))
    own = AutoConfig.from_pretrained(backbone)
    try:
        pixels, _ = ImageProcessingMixin.get_image_processor_dict(backbone)
    except OSError:  # some folders hold the weights alone
        pixels = {}
    reader = PictureReader(
        replace(
            config,
            backbone=own.to_dict(),
            picture_px=own.image_size,
            mean=tuple(pixels.get("image_mean", config.mean)),
            std=tuple(pixels.get("image_std", config.std)),
        )
    )
    name, options = BACKBONES[own.model_type]
    trained = getattr(transformers, name).from_pretrained(backbone, dtype=torch.float32, **options)
    reader.backbone.load_state_dict(trained.state_dict())
    return reader


def _backbone(values: Mapping[str, Any]) -> Any:  # noqa: ANN401
    """Return a vision transformer of a config, with random weights."""
    kind = values.get("model_type")
    if kind not in BACKBONES:
        raise ValueError(f"a backbone of kind {shown(kind)}: it must be {' or '.join(BACKBONES)}")
    name, options = BACKBONES[kind]
    own = {key: value for key, value in values.items() if key not in ("model_type", "auto_map")}
    return getattr(transformers, name)(AutoConfig.for_model(kind, **own), **options)
