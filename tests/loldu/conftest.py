from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel


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


class Words:
    """A tokenizer: the place of every letter in the alphabet."""

    model_max_length = 8

    def __init__(self) -> None:
        self.added_tokens_encoder: dict[str, int] = {}

    def tokenize(self, prompt: str) -> list[str]:
        return list(prompt)

    def __call__(self, prompts: str | list[str], **_: object) -> SimpleNamespace:
        prompts = [prompts] if isinstance(prompts, str) else prompts
        ids = [[ord(c) % 14 for c in prompt.ljust(8)[:8]] for prompt in prompts]
        return SimpleNamespace(input_ids=torch.tensor(ids), attention_mask=None)


def build_pipeline() -> StableDiffusionPipeline:
    torch.manual_seed(3)
    vae = AutoencoderKL(
        block_out_channels=(4,),
        norm_num_groups=2,
        latent_channels=4,
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=8, bos_token_id=14, eos_token_id=15,
        )
    )  # fmt: skip
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=encoder.eval(),
        tokenizer=None,
        unet=build_unet(),
        scheduler=DDIMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.tokenizer = Words()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_pictures(
    pipeline: StableDiffusionPipeline, prompts: list[str], seeds: list[int]
) -> np.ndarray:
    return pipeline(
        prompts,
        negative_prompt=["bad"] * len(prompts),
        guidance_scale=3.0,
        num_inference_steps=2,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        height=8,
        width=8,
        output_type="np",
    ).images


@pytest.fixture
def make_two_layers() -> Callable[..., TwoLayers]:
    return build_two_layers


@pytest.fixture
def make_unet() -> Callable[..., UNet2DConditionModel]:
    return build_unet


@pytest.fixture
def make_pipeline() -> Callable[[], StableDiffusionPipeline]:
    return build_pipeline


@pytest.fixture
def draw() -> Callable[..., np.ndarray]:
    """Two steps of a pipeline under guidance, as pixels."""
    return draw_pictures
