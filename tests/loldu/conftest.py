from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

torch.set_num_threads(1)


class TwoLayers(nn.Module):
    """A small network with layers wider and taller than square."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(24, 12)
        self.tall = nn.Linear(12, 20, bias=False)
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.tall(torch.tanh(self.wide(x)))))


def build_two_layers(seed: int = 0) -> TwoLayers:
    torch.manual_seed(seed)
    return TwoLayers().eval()


def build_unet(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        block_out_channels=(16, 32),
        layers_per_block=1,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    return unet.eval()


@pytest.fixture
def make_two_layers() -> Callable[..., TwoLayers]:
    return build_two_layers


@pytest.fixture
def make_unet() -> Callable[..., UNet2DConditionModel]:
    return build_unet
