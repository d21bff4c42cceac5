"""The pocket AutoencoderKL: f = 8, 16 latent channels, started from an exact linear code.

A default start stalls far from a usable picture. So the encoder is first set to the best linear
code there is: three Haar transforms (the three downsamplings) followed by the first 16 principal
components of the 8 x 8 patch. GroupNorm and SiLU are made linear for it: constant channels fix
each group's spread, and a component travels as a pair (+c, -c), since silu(c) - silu(-c) = c.
"""

# diffusers and transformers type their models' parts and options loosely or wrongly.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportIndexIssue=false
# pyright: reportOptionalMemberAccess=false, reportOptionalSubscript=false
# pyright: reportGeneralTypeIssues=false, reportOperatorIssue=false

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from jaxtyping import Float
from torch import Tensor, nn

from pocket.corpus import Corpus
from pocket.fitting import Losses, device, fit

LATENT_CHANNELS = 16
_CHANNELS = (16, 48, 128, 128)
_GROUPS = 8
_CONSTANT = 4.0  # value of the channels that fix the spread of a group
_HAAR = (
    torch.tensor(
        [[[1, 1], [1, 1]], [[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]]
    ).float()
    / 2
)


def haar(x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b 4*c h/2 w/2"]:
    """Return one level of the orthonormal Haar transform; channel c becomes 4c ... 4c + 3."""
    kernel = _HAAR[:, None].repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(x, kernel, stride=2, groups=x.shape[1])


def build_vae(pictures: Float[Tensor, "n 3 h w"]) -> AutoencoderKL:
    """Return an autoencoder whose encoder is the Haar + PCA code of `pictures`."""
    vae = AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=_CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=_GROUPS,
        sample_size=pictures.shape[-1],
        mid_block_add_attention=False,
    )
    with torch.no_grad():
        _variance_preserving(vae)
        _linear_encoder(vae, pictures)
        _identity_decoder(vae)
    return vae


def _variance_preserving(vae: AutoencoderKL) -> None:
    for name, module in vae.named_modules():
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(0, module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
            if name.endswith("conv2"):  # the last convolution of a residual branch
                module.weight.mul_(0.05 if name.startswith("encoder") else 0.5)


def _pass_through(conv: nn.Conv2d, channels: int) -> None:
    middle = conv.weight.shape[-1] // 2
    conv.weight[:channels] = 0
    for c in range(channels):
        conv.weight[c, c, middle, middle] = 1


def _haar_downsampling(conv: nn.Conv2d, channels: int) -> None:
    conv.weight[: 4 * channels] = 0
    for c in range(channels):
        conv.weight[4 * c : 4 * c + 4, c, :2, :2] = _HAAR


def _linear_encoder(vae: AutoencoderKL, pictures: Float[Tensor, "n 3 h w"]) -> None:
    encoder = vae.encoder
    patches = haar(haar(haar(pictures))).permute(0, 2, 3, 1).reshape(-1, 192)
    mean = patches.mean(0)
    variance, vectors = torch.linalg.eigh(torch.cov(patches.T))
    spread, vectors = variance.flip(0).clamp(min=1e-6).sqrt(), vectors.flip(1)

    _pass_through(encoder.conv_in, 3)
    _haar_downsampling(encoder.down_blocks[0].downsamplers[0].conv, 3)
    _pass_through(encoder.down_blocks[1].resnets[0].conv_shortcut, 12)
    _haar_downsampling(encoder.down_blocks[1].downsamplers[0].conv, 12)
    _pass_through(encoder.down_blocks[2].resnets[0].conv_shortcut, 48)

    last = encoder.down_blocks[2].downsamplers[0].conv
    nn.init.zeros_(last.weight)
    nn.init.zeros_(encoder.conv_out.weight)

    def emit(channel: int, component: int, sign: int) -> None:
        vector = sign * vectors[:, component] / spread[component]
        last.weight[channel, :48, :2, :2] = torch.einsum("cq,qhw->chw", vector.view(48, 4), _HAAR)
        last.bias[channel] = -(mean @ vector)

    width, spare, constants = _CHANNELS[-1] // _GROUPS, LATENT_CHANNELS, 6
    for group in range(_GROUPS):
        channel = group * width
        for component in range(group, LATENT_CHANNELS, _GROUPS):
            emit(channel, component, +1)
            emit(channel + 1, component, -1)
            gain = 0.7 * (spread[component] / spread[LATENT_CHANNELS - 1]).clamp(max=16).sqrt()
            encoder.conv_out.weight[component, channel, 1, 1] = gain
            encoder.conv_out.weight[component, channel + 1, 1, 1] = -gain
            channel += 2
        while channel < (group + 1) * width - constants:
            emit(channel, spare, +1)
            spare, channel = spare + 1, channel + 1
        for i in range(constants):
            last.bias[channel + i] = _CONSTANT * (-1) ** i
    total = constants * _CONSTANT**2 + width - constants
    encoder.conv_norm_out.weight.fill_(math.sqrt(total / width))

    nn.init.zeros_(vae.quant_conv.weight)
    vae.quant_conv.weight[:, :, 0, 0].fill_diagonal_(1)
    vae.quant_conv.bias[LATENT_CHANNELS:] = -6  # log-variance of the posterior


def _identity_decoder(vae: AutoencoderKL) -> None:
    nn.init.zeros_(vae.post_quant_conv.weight)
    _pass_through(vae.post_quant_conv, LATENT_CHANNELS)
    for block in vae.decoder.up_blocks:
        for upsampler in block.upsamplers or ():
            upsampler.conv.weight.mul_(0.4)
            upsampler.conv.weight[:, :, 1, 1].diagonal().add_(0.8)
    vae.decoder.conv_out.weight.mul_(0.5)


def _edges(x: Tensor) -> tuple[Tensor, Tensor]:
    return x[..., 1:] - x[..., :-1], x[..., 1:, :] - x[..., :-1, :]


def edge_strength(x: Float[Tensor, "b 3 h w"]) -> float:
    """Return the mean difference of neighboring pixels; blur makes it smaller."""
    return sum(difference.abs().mean().item() for difference in _edges(x)) / 2


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Encode to the posterior's mean and decode."""
    return vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)


def psnr(first: Tensor, second: Tensor) -> float:
    """Return the mean peak signal-to-noise ratio, in dB, of pictures in [-1, 1]."""
    errors = (first - second).pow(2).mean((1, 2, 3))
    return (10 * torch.log10(4 / errors)).mean().item()


@torch.no_grad()
def normalize_latents(vae: AutoencoderKL, pixels: Float[Tensor, "n 3 h w"]) -> None:
    """Give every latent channel mean 0 and standard deviation 1, without a change to any picture.

    Exact: what the 1 x 1 quant_conv does is undone by the 1 x 1 post_quant_conv. So the pipeline
    needs no mean and deviation per channel, and its scaling factor is 1.
    """
    latents = torch.cat([vae.encode(x).latent_dist.mean for x in pixels.split(100)])
    mean, gain = latents.mean((0, 2, 3)), latents.std((0, 2, 3)).reciprocal()
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:LATENT_CHANNELS] *= gain.view(-1, 1, 1, 1)
    quant.bias[:LATENT_CHANNELS] = (quant.bias[:LATENT_CHANNELS] - mean) * gain
    quant.bias[LATENT_CHANNELS:] += 2 * gain.log()
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight /= gain.view(1, -1, 1, 1)
    vae.register_to_config(scaling_factor=1.0)


def pretrain_vae(
    train: Corpus, held_out: Corpus, build: Path, steps: int, batch: int
) -> AutoencoderKL:
    """Train the autoencoder: L1 + 2 MSE + 0.5 edges + 1e-4 KL; the encoder is slower."""
    vae = build_vae(train.pixels(slice(0, 1500)))
    vae.to(device(), memory_format=torch.channels_last)
    sample = held_out.pixels(slice(0, 96)).to(device())

    def losses_at(step: int) -> Losses:
        x = train.pixels(torch.randint(len(train), (batch,))).to(device())
        x = x.flip(3) if step % 2 else x
        x = x.contiguous(memory_format=torch.channels_last)
        posterior = vae.encode(x).latent_dist
        y = vae.decode(posterior.sample()).sample
        edges = sum((a - b).abs().mean() for a, b in zip(_edges(y), _edges(x), strict=True))
        kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
        mse = F.mse_loss(y, x)
        loss = F.l1_loss(y, x) + 2 * mse + 0.5 * edges + 1e-4 * kl
        return {"loss": loss, "mse": mse, "kl": kl}

    encoder = [*vae.encoder.parameters(), *vae.quant_conv.parameters()]
    decoder = [*vae.decoder.parameters(), *vae.post_quant_conv.parameters()]
    fit(
        "vae",
        vae,
        [{"params": encoder, "lr": 4.5e-4}, {"params": decoder, "lr": 1.5e-3}],
        losses_at,
        build=build,
        steps=steps,
        clip=2.0,
        weight_decay=0.0,
        on_checkpoint=lambda _: {"psnr_db": round(psnr(reconstruct(vae, sample), sample), 2)},
    )
    return vae
