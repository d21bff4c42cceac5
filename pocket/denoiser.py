"""The pocket UNet2DConditionModel, trained together with the pipeline's text encoder.

With a frozen text encoder, or predicting the noise, colours do not bind to their objects in the
samples a CPU can afford. Trained jointly, on v with an x0 weight of clamp(SNR, 1, 5), they do.
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from pocket.corpus import CAPTIONS_EACH, tokenize
from pocket.fitting import Losses, device, fit, half_precision, hold_then_decay
from pocket.vae import LATENT_CHANNELS

_CHANNELS = (96, 160)


def build_unet(cross_attention_dim: int) -> UNet2DConditionModel:
    """Two levels, 8 x 8 and 4 x 4 latents, each with self- and cross-attention."""
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
    """SD v1.5's noise schedule with a zero terminal SNR, so that plain backgrounds stay plain."""
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


def pretrain_denoiser(
    latents: Float[Tensor, "n c h w"],
    token_ids: Tensor,
    tokenizer: CLIPTokenizer,
    text_encoder: CLIPTextModel,
    build: Path,
    steps: int,
    batch: int,
    on_checkpoint: Callable[[UNet2DConditionModel, CLIPTextModel], dict[str, object]],
) -> tuple[UNet2DConditionModel, CLIPTextModel]:
    """Trains UNet and text encoder on scaled latents and captions (dropped in 10% of cases).

    Args:
        latents: Scaled latents of the corpus.
        token_ids: Its captions, (n, captions, length).
        tokenizer: For the empty caption.
        text_encoder: Where the text side starts.
        build: Folder for work files.
        steps: Optimizer steps.
        batch: Pictures a step.
        on_checkpoint: Judges the averaged weights at every checkpoint.
    """
    torch.manual_seed(0)
    unet = build_unet(text_encoder.config.hidden_size)
    nn.init.zeros_(unet.conv_out.weight)
    model = _Denoiser(unet, text_encoder.train().requires_grad_(True))
    model.to(device())
    alphas_cumprod = build_noise_scheduler().alphas_cumprod.to(device())
    snr = alphas_cumprod / (1 - alphas_cumprod)
    weights = 1.5 * snr.clamp(1, 5) / (snr + 1)
    empty = tokenize(tokenizer, [""])

    def losses_at(step: int) -> Losses:
        rows = torch.randint(len(latents), (batch,))
        ids = token_ids[rows, torch.randint(CAPTIONS_EACH, (batch,))]
        ids = torch.where(torch.rand(batch, 1) < 0.1, empty, ids).to(device())
        x = latents[rows].to(device())
        noise, t = torch.randn_like(x), torch.randint(len(snr), (batch,), device=x.device)
        signal = alphas_cumprod[t].view(-1, 1, 1, 1).sqrt()
        spread = (1 - alphas_cumprod[t]).view(-1, 1, 1, 1).sqrt()
        noisy = signal * x + spread * noise
        with half_precision():
            v = model(noisy, t, ids)
        errors = (v.float() - (signal * noise - spread * x)).pow(2).mean((1, 2, 3))
        return {"loss": (weights[t] * errors).mean()}

    fit(
        "denoiser",
        model,
        [
            {"params": list(unet.parameters()), "lr": 1e-3},
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
    return unet, text_encoder
