"""The pocket UNet2DConditionModel, trained together with the pipeline's text encoder.

With a frozen text encoder, or with noise prediction, colors do not bind to their objects in the
samples a CPU can afford. Trained jointly, on v with an x0 weight of clamp(SNR, 1, 5), they do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pocket.corpus import CAPTIONS_EACH, tokenize
from pocket.fitting import Losses, device, fit, half_precision, hold_then_decay
from pocket.muon import Muon, muon_groups
from pocket.vae import LATENT_CHANNELS
from pocket.world import INDIVIDUALS, RARE_TOKENS

_RARE_SPREAD = 0.5  # of the names' own


@dataclass(frozen=True)
class Denoising:
    """Size and training of the UNet.

    Attributes:
        steps: Optimizer steps.
        batch: Pictures per step.
        channels: Channels at 8 x 8 and at 4 x 4.
        layers_per_block: Residual and attention blocks per level.
        lr: Learning rate of the UNet; the text encoder has half of it.
        hold: Share of the steps before the learning rate falls.
        ema_decay: Decay of the averaged weights.
        snr_limit: Largest weight of an error in x0, min-SNR's gamma.
        patterned_share: Share of a batch drawn from dotted and striped things alone.
        two_share: Share of a batch that shows two things.
        named_share: Share of a batch that shows individuals with their names.
    """

    steps: int = 62_500
    batch: int = 64
    channels: tuple[int, int] = (96, 160)
    layers_per_block: int = 1
    lr: float = 6e-4
    hold: float = 0.8
    ema_decay: float = 0.999
    snr_limit: float = 5.0
    patterned_share: float = 0.15
    two_share: float = 0.1
    named_share: float = 0.15


def build_unet(settings: Denoising, cross_attention_dim: int) -> UNet2DConditionModel:
    """Return a UNet with two levels, 8 x 8 and 4 x 4, each with self- and cross-attention."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        layers_per_block=settings.layers_per_block,
        block_out_channels=settings.channels,
        down_block_types=("CrossAttnDownBlock2D",) * len(settings.channels),
        up_block_types=("CrossAttnUpBlock2D",) * len(settings.channels),
        cross_attention_dim=cross_attention_dim,
        attention_head_dim=4,  # the number of heads, as SD v1.5 misnames it
        norm_num_groups=16,
    )
    nn.init.zeros_(unet.conv_out.weight)
    return unet


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
    """Captioned pictures, as latents.

    Attributes:
        latents: Scaled latents (n, c, h, w) in half precision.
        token_ids: Captions as token ids (n, captions, length).
        rows: Rows to draw from; all of them if None.
    """

    latents: Tensor
    token_ids: Tensor
    rows: Tensor | None = None

    def draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Return random pictures, each with one of its captions."""
        rows = torch.randint(len(self.latents if self.rows is None else self.rows), (count,))
        rows = rows if self.rows is None else self.rows[rows]
        ids = self.token_ids[rows, torch.randint(CAPTIONS_EACH, (count,))]
        return self.latents[rows].float(), ids


def pretrain_denoiser(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    mixture: Sequence[tuple[Captioned, float]],
    build: Path,
    settings: Denoising,
    on_checkpoint: Callable[[int], dict[str, object]],
    first_step: int = 0,
) -> None:
    """Train UNet and text encoder together, in place, on v-prediction.

    One caption in ten is dropped, and so is every caption with a rare token. From descriptions
    alone, a text encoder learns to ignore words that it does not need: "sks toy" then equals "toy".
    So a part of the mixture shows individuals under made-up names. The rare tokens are not among
    the names; `place_rare_tokens` gives them an embedding afterwards.

    Args:
        unet: UNet.
        text_encoder: Text encoder with an embedding for every name.
        tokenizer: Tokenizer with the names.
        mixture: Sources of pictures, each with its share of every batch.
        build: Folder for work files.
        settings: Settings of the training.
        on_checkpoint: Judge of the averaged weights at every checkpoint.
        first_step: Step at which trained models go on.
    """
    model = _Denoiser(unet, text_encoder.train().requires_grad_(True))
    model.to(device())
    alphas_cumprod = build_noise_scheduler().alphas_cumprod.to(device())
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = 1.5 * snr.clamp(1, settings.snr_limit) / (snr + 1)
    drawn = _drawing(mixture, tokenizer, settings.batch)

    def losses_at(step: int) -> Losses:
        x, ids = (part.to(device()) for part in drawn())
        noise, t = torch.randn_like(x), torch.randint(len(snr), (len(x),), device=x.device)
        signal = alphas_cumprod[t].view(-1, 1, 1, 1).sqrt()
        spread = (1 - alphas_cumprod[t]).view(-1, 1, 1, 1).sqrt()
        with half_precision():
            v = model(signal * x + spread * noise, t, ids)
        errors = (v.float() - (signal * noise - spread * x)).pow(2).mean((1, 2, 3))
        return {"loss": (weights[t] * errors).mean()}

    fit(
        "denoiser",
        model,
        [*muon_groups(unet, settings.lr), *muon_groups(text_encoder, settings.lr / 2)],
        losses_at,
        build=build,
        steps=settings.steps,
        first_step=first_step,
        schedule=partial(hold_then_decay, hold=settings.hold),
        warmup_steps=200,
        betas=(0.9, 0.99),
        ema_decay=settings.ema_decay,
        optimizer_class=Muon,
        checkpoint_every=1000,
        on_checkpoint=on_checkpoint,
    )


def _drawing(
    mixture: Sequence[tuple[Captioned, float]], tokenizer: CLIPTokenizer, batch: int
) -> Callable[[], tuple[Tensor, Tensor]]:
    """Return a function that draws a batch of latents and captions, some of them dropped."""
    empty, rare = tokenize(tokenizer, [""]), _rare_ids(tokenizer)
    counts = [round(share * batch) for _, share in mixture]
    counts[0] = batch - sum(counts[1:])

    def drawn() -> tuple[Tensor, Tensor]:
        parts = [source.draw(n) for (source, _), n in zip(mixture, counts, strict=True)]
        x, ids = (torch.cat(both) for both in zip(*parts, strict=True))
        dropped = torch.isin(ids, rare).any(1, keepdim=True) | (torch.rand(batch, 1) < 0.1)
        return x, torch.where(dropped, empty, ids)

    return drawn


def _rare_ids(tokenizer: CLIPTokenizer) -> Tensor:
    return torch.tensor(tokenizer.convert_tokens_to_ids([f"{t}</w>" for t in RARE_TOKENS]))


@torch.no_grad()
def place_rare_tokens(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    """Give each rare token an embedding near the middle of the names.

    So it reads as a name, but as nobody's.
    """
    torch.manual_seed(0)
    embedding = text_encoder.get_input_embeddings()
    assert isinstance(embedding, nn.Embedding)
    names = torch.tensor(tokenizer.convert_tokens_to_ids(list(INDIVIDUALS)))
    weight, rare = embedding.weight, _rare_ids(tokenizer)
    middle = weight[names].mean(0)
    others = weight[names] - middle
    mixture = torch.randn(len(rare), len(others)).to(others) / len(others) ** 0.5
    weight[rare] = middle + _RARE_SPREAD * mixture @ others
