"""One training step of DreamBooth, with randomness that depends on (seed, step) alone."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DDPMScheduler, SchedulerMixin, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from trainer.cache import Cache
from trainer.config import OptimizationConfig, PriorConfig
from trainer.errors import TrainerError

_ROWS, _VIEWS, _NOISE = 1, 2, 3
"""Streams of the seed, so that no two draws share one."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass is made of; concept rows first, then class rows."""

    views: Int[Tensor, " rows"]
    timesteps: Int[Tensor, " rows"]
    noise: Float[Tensor, "rows c h w"]
    posterior_noise: Float[Tensor, "rows c h w"]
    instance_rows: int


@dataclass(frozen=True)
class Losses:
    """Means over rows; `total` is what is descended."""

    total: Float[Tensor, ""]
    instance: Float[Tensor, ""]
    prior: Float[Tensor, ""]


# ---------------------------------------------------------------------------- what a step sees


def draw_batch(
    cache: Cache,
    optimization: OptimizationConfig,
    prior_batch_size: int,
    num_train_timesteps: int,
    *,
    pass_index: int,
    process_index: int = 0,
    num_processes: int = 1,
) -> Batch:
    """The rows, timesteps and noise of forward pass `pass_index`, counted from the run's start.

    Drawn on the CPU for all processes together and then shared out, so that two processes see what
    one with twice the batch would, and a resumed run what the uninterrupted one would.
    """
    seed = optimization.seed
    instance_rows = optimization.train_batch_size
    views: list[int] = []
    for stream, pictures, rows in (
        (0, cache.instances, instance_rows),
        (1, cache.classes, prior_batch_size),
    ):
        share = rows * num_processes
        start = pass_index * share + process_index * rows
        views += [_view_at(pictures, start + row, seed, stream) for row in range(rows)]
    shape = (len(views) * num_processes, *cache.mean.shape[1:])
    rng = np.random.default_rng([seed, _NOISE, pass_index])
    timesteps = rng.integers(num_train_timesteps, size=shape[0])
    noise = rng.standard_normal((2, *shape), dtype=np.float32)
    mine = slice(process_index * len(views), (process_index + 1) * len(views))

    def to_device(array: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(array)
        if cache.mean.is_cuda:  # a copy from pageable memory would wait for the device
            tensor = tensor.pin_memory()
        return tensor.to(cache.mean.device, non_blocking=True)

    return Batch(
        views=to_device(np.asarray(views)),
        timesteps=to_device(timesteps[mine]),
        noise=to_device(noise[0, mine]),
        posterior_noise=to_device(noise[1, mine]),
        instance_rows=instance_rows,
    )


def _view_at(pictures: list[range], position: int, seed: int, stream: int) -> int:
    """The view at a position of an endless list in which every epoch is its own shuffle."""
    epoch, place = divmod(position, len(pictures))
    order = np.random.default_rng([seed, _ROWS, stream, epoch]).permutation(len(pictures))
    views = pictures[order[place]]
    return views[int(np.random.default_rng([seed, _VIEWS, stream, position]).integers(len(views)))]


# ---------------------------------------------------------------------------- what it descends


def training_noise_scheduler(noise_scheduler: SchedulerMixin) -> DDPMScheduler:
    """The base's own noise schedule and prediction type, apart from its sampler's state.

    Raises:
        TrainerError: for a prediction type other than epsilon and v_prediction.
    """
    scheduler = DDPMScheduler.from_config(noise_scheduler.config)
    if scheduler.config.prediction_type not in ("epsilon", "v_prediction"):
        raise TrainerError(
            f"The base predicts {scheduler.config.prediction_type}; only epsilon and v_prediction "
            "can be trained."
        )
    return scheduler


def min_snr_weights(
    noise_scheduler: DDPMScheduler, timesteps: Int[Tensor, " rows"], gamma: float | None
) -> Float[Tensor, " rows"] | float:
    """Min-SNR weights: min(SNR, gamma) on the x0 error, whatever the network predicts.

    The x0 error is the noise error times 1 / SNR, and the v error times 1 / (SNR + 1).

    Source: Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, Eq. 4-8.
    """
    if gamma is None:
        return 1.0
    alpha_bar = noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    if noise_scheduler.config.prediction_type == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


def dreambooth_losses(
    unet: nn.Module,
    noise_scheduler: DDPMScheduler,
    cache: Cache,
    batch: Batch,
    prior: PriorConfig,
    snr_gamma: float | None,
    frozen: UNet2DConditionModel,
) -> Losses:
    """Mean squared error of the prediction on concept rows, and on class rows.

    total = instance + prior_loss_weight * prior. With `prior_target="base"` the class rows are
    compared with `frozen`'s prediction, its adapter switched off, from the same noisy latents; both
    passes then have the same shape, so that an adapter that does nothing has a loss of exactly 0.

    Source: Ruiz et al., DreamBooth, Eq. 2.
    """
    latents = cache.mean[batch.views] + cache.std[batch.views] * batch.posterior_noise
    noisy = noise_scheduler.add_noise(latents, batch.noise, batch.timesteps)
    states = cache.embeddings[cache.prompt_of_view[batch.views]]
    if noise_scheduler.config.prediction_type == "v_prediction":
        target = noise_scheduler.get_velocity(latents, batch.noise, batch.timesteps)
    else:
        target = batch.noise

    def predict(network: nn.Module, rows: slice) -> Tensor:
        inputs = noisy[rows].to(states.dtype)
        return network(inputs, batch.timesteps[rows], states[rows], return_dict=False)[0].float()

    concept, classes = slice(batch.instance_rows), slice(batch.instance_rows, None)
    has_prior = len(batch.views) > batch.instance_rows
    if has_prior and prior.prior_target == "base":
        prediction = torch.cat([predict(unet, concept), predict(unet, classes)])
        with torch.no_grad(), adapter_off(frozen):
            target = torch.cat([target[concept], predict(frozen, classes)])
    else:
        prediction = predict(unet, slice(None))
    errors = (prediction - target).square().flatten(1).mean(dim=1)
    errors = errors * min_snr_weights(noise_scheduler, batch.timesteps, snr_gamma)
    instance = errors[concept].mean()
    prior_loss = (
        errors[classes].mean() if len(errors) > batch.instance_rows else torch.zeros_like(instance)
    )
    return Losses(instance + prior.prior_loss_weight * prior_loss, instance, prior_loss)


@contextmanager
def adapter_off(unet: UNet2DConditionModel) -> Iterator[None]:
    """The base alone, for as long as the block lasts."""
    unet.disable_adapters()
    try:
        yield
    finally:
        unet.enable_adapters()


def learning_rate(optimization: OptimizationConfig, step: int) -> float:
    """The learning rate of a step: linear warm-up, then constant, half a cosine or a line to 0."""
    warmup, last = optimization.lr_warmup_steps, optimization.max_train_steps
    if step < warmup:
        return optimization.learning_rate * (step + 1) / warmup
    left = 1 - (step - warmup) / max(1, last - warmup)
    factor = {
        "constant": 1.0,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "linear": left,
    }[optimization.lr_scheduler]
    return optimization.learning_rate * factor
