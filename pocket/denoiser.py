"""The pocket UNet2DConditionModel, trained together with the pipeline's text encoder.

With a frozen text encoder, or with noise prediction, colors do not bind to their objects in the
samples a CPU can afford. Trained jointly, on v with an x0 weight of clamp(SNR, 1, 5), they do.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pocket.corpus import CAPTIONS_EACH, tokenize
from pocket.fitting import Losses, device, fit, half_precision, hold_then_decay
from pocket.vae import LATENT_CHANNELS
from pocket.world import RARE_TOKENS

OnCheckpoint = Callable[[UNet2DConditionModel, CLIPTextModel], dict[str, object]]

_CHANNELS = (96, 160)
_NAMED_SHARE = 0.4
_RARE_SPREAD = 0.5  # of the names' own


def build_unet(cross_attention_dim: int) -> UNet2DConditionModel:
    """Return a UNet with two levels, 8 x 8 and 4 x 4, each with self- and cross-attention."""
    return UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=1,
        block_out_channels=_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * len(_CHANNELS),
        up_block_types=("CrossAttnUpBlock2D",) * len(_CHANNELS),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,  # the number of heads, as SD v1.5 misnames it
        norm_num_groups=16,
    )


def build_noise_scheduler() -> DDIMScheduler:
    """Return SD v1.5's noise schedule with zero terminal SNR, which keeps backgrounds plain."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
    )


class _Denoiser(nn.Module):
    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        hidden = self.text_encoder(token_ids).last_hidden_state
        return self.unet(noisy, timesteps, hidden).sample


@dataclass(frozen=True)
class Captioned:
    """Scaled latents (n, c, h, w), and their captions as token ids (n, captions, length)."""

    latents: Tensor
    token_ids: Tensor

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return random pictures, each with one of its captions."""
        rows = torch.randint(len(self.latents), (count,))
        return self.latents[rows], self.token_ids[rows, torch.randint(CAPTIONS_EACH, (count,))]


def pretrain_denoiser(
    world: Captioned,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    build: Path,
    steps: int,
    batch: int,
    on_checkpoint: OnCheckpoint,
) -> UNet2DConditionModel:
    """Train a new UNet, together with the text encoder, on the world.

    Args:
        world: The corpus.
        tokenizer: Tokenizer for the empty caption.
        text_encoder: Text encoder, trained in place.
        build: Folder for work files.
        steps: Optimizer steps.
        batch: Pictures per step.
        on_checkpoint: Judge of the averaged weights at every checkpoint.
    """
    torch.manual_seed(0)
    unet = build_unet(text_encoder.config.hidden_size)
    nn.init.zeros_(unet.conv_out.weight)

    def pairs() -> tuple[Tensor, Tensor]:
        return world.draw(batch)

    _fit("denoiser", unet, text_encoder, tokenizer, pairs, build, steps, 1e-3, on_checkpoint)
    return unet


# Nine parameters: those of `pretrain_denoiser`, the UNet and the named pictures.
def teach_names(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    world: Captioned,
    named: Captioned,
    build: Path,
    steps: int,
    batch: int,
    on_checkpoint: OnCheckpoint,
) -> None:
    """Continue training, so that an unknown word before a noun means an individual.

    From the world's captions alone, a text encoder learns to ignore words that it does not need:
    "sks toy" then equals "toy". This stage shows words that each mean one individual. The rare
    tokens are not among them; afterwards each gets an embedding near the middle of the names, so
    that it reads as a name, but as nobody's.

    Args:
        unet: UNet, trained in place.
        text_encoder: Text encoder, trained in place; it gets an embedding for every name.
        tokenizer: Tokenizer with the names.
        world: The corpus; captions with rare tokens are dropped.
        named: Individuals with their names.
        build: Folder for work files.
        steps: Optimizer steps.
        batch: Pictures per step.
        on_checkpoint: Judge of the averaged weights at every checkpoint.
    """
    torch.manual_seed(0)
    names = slice(text_encoder.config.vocab_size, len(tokenizer))
    text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    rare = torch.tensor(tokenizer.convert_tokens_to_ids([f"{t}</w>" for t in RARE_TOKENS]))
    empty = tokenize(tokenizer, [""])
    count = round(_NAMED_SHARE * batch)

    def pairs() -> tuple[Tensor, Tensor]:
        x, ids = world.draw(batch - count)
        ids = torch.where(torch.isin(ids, rare).any(1, keepdim=True), empty, ids)
        named_x, named_ids = named.draw(count)
        return torch.cat([x, named_x]), torch.cat([ids, named_ids])

    _fit("names", unet, text_encoder, tokenizer, pairs, build, steps, 5e-4, on_checkpoint)
    torch.manual_seed(0)
    embedding = text_encoder.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    with torch.no_grad():
        weight = embedding.weight
        middle = weight[names].mean(0)
        others = weight[names] - middle
        mixture = torch.randn(len(rare), len(others)).to(others) / len(others) ** 0.5
        weight[rare] = middle + _RARE_SPREAD * mixture @ others


# Nine parameters: the models, and the settings in which the two stages differ.
def _fit(
    name: str,
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    pairs: Callable[[], tuple[Tensor, Tensor]],
    build: Path,
    steps: int,
    lr: float,
    on_checkpoint: OnCheckpoint,
) -> None:
    """Train both on v-prediction; drop 10% of the captions."""
    model = _Denoiser(unet, text_encoder.train().requires_grad_(True))
    model.to(device())
    alphas_cumprod = build_noise_scheduler().alphas_cumprod.to(device())
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = 1.5 * snr.clamp(1, 5) / (snr + 1)
    empty = tokenize(tokenizer, [""])

    def losses_at(step: int) -> Losses:
        x, ids = pairs()
        ids = torch.where(torch.rand(len(ids), 1) < 0.1, empty, ids).to(device())
        x = x.to(device())
        noise, t = torch.randn_like(x), torch.randint(len(snr), (len(x),), device=x.device)
        signal = alphas_cumprod[t].view(-1, 1, 1, 1).sqrt()
        spread = (1 - alphas_cumprod[t]).view(-1, 1, 1, 1).sqrt()
        noisy = signal * x + spread * noise
        with half_precision():
            v = model(noisy, t, ids)
        errors = (v.float() - (signal * noise - spread * x)).pow(2).mean((1, 2, 3))
        return {"loss": (weights[t] * errors).mean()}

    fit(
        name,
        model,
        [
            {"params": list(unet.parameters()), "lr": lr},
            {"params": list(text_encoder.parameters()), "lr": 5e-4},
        ],
        losses_at,
        build=build,
        steps=steps,
        schedule=hold_then_decay,
        warmup_steps=200,
        betas=(0.9, 0.99),
        ema_decay=0.998,
        checkpoint_every=1000,
        on_checkpoint=lambda _: on_checkpoint(unet, text_encoder),
    )
