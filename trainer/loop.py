"""The DreamBooth objective, with randomness that depends on (seed, step) alone."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, DDPMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn

from trainer.cache import Cache
from trainer.config import Config, OptimizationConfig
from trainer.errors import TrainerError

_ORDER, _VIEWS, _NOISE = 1, 2, 3
"""Streams of the seed, so that no two draws share one."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass is made of: concept rows first, then class rows."""

    views: Int[Tensor, " rows"]
    timesteps: Int[Tensor, " rows"]
    noise: Float[Tensor, "rows c h w"]
    posterior_noise: Float[Tensor, "rows c h w"]

    def part(self, rows: slice) -> "Batch":
        """Some of its rows."""
        return Batch(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Losses:
    """Means over rows; `total` is what is descended."""

    total: Float[Tensor, ""]
    instance: Float[Tensor, ""]
    prior: Float[Tensor, ""]

    def values(self) -> Float[Tensor, "3"]:
        """The numbers alone, still on the device."""
        return torch.stack([self.total, self.instance, self.prior]).detach()


class DreamBooth:
    """Draws the batches of a run and says how wrong the UNet is on them."""

    def __init__(
        self,
        frozen: UNet2DConditionModel,
        noise_scheduler: ConfigMixin,
        cache: Cache,
        config: Config,
    ) -> None:
        """Take the UNet itself (for its predictions without the adapter) and the base's schedule.

        Raises:
            TrainerError: the base predicts neither noise nor velocity.
        """
        self._frozen = frozen
        self._noise_scheduler = training_noise_scheduler(noise_scheduler)
        self._cache = cache
        self._prior = config.prior
        self._noise_offset = config.optimization.noise_offset
        self._snr_gamma = config.optimization.snr_gamma
        self._seed = config.optimization.seed
        self._concept_rows = config.optimization.train_batch_size
        wanted = config.prior.prior_batch_size or self._concept_rows
        self._class_rows = wanted if cache.classes else 0

    @property
    def rows(self) -> int:
        """How many rows a batch has."""
        return self._concept_rows + self._class_rows

    def draw(self, pass_index: int, process_index: int = 0, num_processes: int = 1) -> Batch:
        """The batch of forward pass `pass_index`, counted from the start of the run.

        Drawn on the CPU for all processes together and then shared out, so that two processes see
        what one with twice the batch would, and a resumed run what the uninterrupted one would.
        A noise offset is part of the noise: what is added to the latents is what is predicted.

        Source: Guttenberg, Diffusion with Offset Noise (the noise offset).
        """
        shape = self._cache.mean.shape[1:]
        last = self._noise_scheduler.config["num_train_timesteps"]
        parts: list[tuple[np.ndarray, ...]] = []
        for kind, (pictures, rows) in enumerate(
            ((self._cache.instances, self._concept_rows), (self._cache.classes, self._class_rows))
        ):
            share = rows * num_processes
            mine = slice(process_index * rows, (process_index + 1) * rows)
            start = pass_index * share + process_index * rows
            views = [view_at(pictures, start + row, self._seed, kind) for row in range(rows)]
            rng = np.random.default_rng([self._seed, _NOISE, kind, pass_index])
            timesteps = rng.integers(last, size=share)
            noise = rng.standard_normal((2, share, *shape), dtype=np.float32)
            if self._noise_offset:  # drawn last, so that without it all else is as it was
                offset = rng.standard_normal((share, shape[0], 1, 1), dtype=np.float32)
                noise[0] += self._noise_offset * offset
            parts.append(
                (np.array(views, np.int64), timesteps[mine], noise[0, mine], noise[1, mine])
            )
        return Batch(*(self._to_device(np.concatenate(part)) for part in zip(*parts, strict=True)))

    def losses(self, unet: nn.Module, batch: Batch, rows: slice = slice(None)) -> Losses:
        """Mean squared error of the prediction on concept rows, and on class rows.

        total = instance + prior_loss_weight * prior. With `prior_target="base"` the class rows are
        compared with what the UNet says with its adapter switched off; both passes have the same
        shape, so that an adapter that does nothing has a prior loss of exactly 0.

        Args:
            unet: what predicts.
            batch: a whole batch.
            rows: those to compute; the losses of all its parts add up to those of the batch.

        Source: Ruiz et al., DreamBooth, Eq. 2.
        """
        first = rows.indices(self.rows)[0]
        batch = batch.part(rows)
        cut = min(max(0, self._concept_rows - first), len(batch.views))
        cache = self._cache
        noise_scheduler: Any = self._noise_scheduler  # its types want an IntTensor; int64 is right
        latents = cache.mean[batch.views] + cache.std[batch.views] * batch.posterior_noise
        noisy = noise_scheduler.add_noise(latents, batch.noise, batch.timesteps)
        states = cache.embeddings[cache.prompt_of_view[batch.views]]
        target = batch.noise
        if noise_scheduler.config["prediction_type"] == "v_prediction":
            target = noise_scheduler.get_velocity(latents, batch.noise, batch.timesteps)

        def predict(network: nn.Module, span: slice) -> Tensor:
            inputs = noisy[span].to(states.dtype), batch.timesteps[span], states[span]
            return network(*inputs, return_dict=False)[0].float()

        concept, classes = slice(cut), slice(cut, None)
        if cut < len(batch.views) and self._prior.prior_target == "base":
            spans = [concept, classes] if cut else [classes]
            prediction = torch.cat([predict(unet, span) for span in spans])
            with torch.no_grad(), adapter_off(self._frozen):
                target = torch.cat([target[concept], predict(self._frozen, classes)])
        else:
            prediction = predict(unet, slice(None))
        errors = (prediction - target).square().flatten(1).mean(dim=1)
        if self._snr_gamma is not None:
            errors = errors * min_snr_weights(noise_scheduler, batch.timesteps, self._snr_gamma)
        instance = errors[concept].sum() / self._concept_rows
        prior = errors[classes].sum() / max(1, self._class_rows)
        return Losses(instance + self._prior.prior_loss_weight * prior, instance, prior)

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor, device = torch.from_numpy(array), self._cache.mean.device
        if device.type == "cuda":  # a copy from pageable memory would wait for the device
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)


def view_at(pictures: list[range], position: int, seed: int, kind: int) -> int:
    """The view at a position of an endless list in which every epoch is a shuffle of its own."""
    epoch, place = divmod(position, len(pictures))
    order = np.random.default_rng([seed, _ORDER, kind, epoch]).permutation(len(pictures))
    views = pictures[order[place]]
    return views[int(np.random.default_rng([seed, _VIEWS, kind, position]).integers(len(views)))]


def training_noise_scheduler(noise_scheduler: ConfigMixin) -> DDPMScheduler:
    """The base's own noise schedule and prediction type, apart from its sampler's state.

    Raises:
        TrainerError: for a prediction type other than epsilon and v_prediction.
    """
    scheduler = DDPMScheduler.from_config(noise_scheduler.config)
    assert isinstance(scheduler, DDPMScheduler)
    prediction_type = scheduler.config["prediction_type"]
    if prediction_type not in ("epsilon", "v_prediction"):
        raise TrainerError(
            f"The base predicts {prediction_type}; only epsilon and v_prediction can be trained."
        )
    return scheduler


def min_snr_weights(
    noise_scheduler: DDPMScheduler, timesteps: Int[Tensor, " rows"], gamma: float
) -> Float[Tensor, " rows"]:
    """Min-SNR weights: min(SNR, gamma) on the x0 error, whatever the network predicts.

    The x0 error is the noise error divided by SNR, and the v error divided by SNR + 1.

    Source: Hang et al., Efficient Diffusion Training via Min-SNR Weighting Strategy, Sec. 3.4.
    """
    alpha_bar = noise_scheduler.alphas_cumprod.to(timesteps.device)[timesteps]
    snr = alpha_bar / (1 - alpha_bar)
    if noise_scheduler.config["prediction_type"] == "v_prediction":
        return snr.clamp(max=gamma) / (snr + 1)
    return (gamma / snr).clamp(max=1)


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
