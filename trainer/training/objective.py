"""The DreamBooth objective, with randomness that depends on (seed, step) alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from diffusers import ConfigMixin, DDPMScheduler, UNet2DConditionModel
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import CLIPTextModel

from loldu.errors import LoLDUError
from trainer.methods.method import Trained
from trainer.options.config import Config, OptimizationConfig
from trainer.training.cache import Cache

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
class Rows:
    """What the network is asked, row by row, and what it should answer.

    `weights` are those of the rows' errors, `states` what the frozen text encoder makes of the
    prompts whose tokens are `input_ids`.
    """

    noisy: Float[Tensor, "rows c h w"]
    timesteps: Int[Tensor, " rows"]
    states: Float[Tensor, "rows tokens dim"]
    input_ids: Int[Tensor, "rows tokens"]
    target: Float[Tensor, "rows c h w"]
    weights: Float[Tensor, " rows"]

    def __getitem__(self, part: slice) -> "Rows":
        """Some of the rows."""
        return Rows(*(tensor[part] for tensor in self._tensors()))

    def answered_by(self, denoiser: nn.Module, live: bool = False) -> Float[Tensor, "rows c h w"]:
        """The network's prediction; live has it read the prompts itself."""
        ids = self.input_ids if live else None
        return denoiser(self.noisy, self.timesteps, self.states, ids)

    @staticmethod
    def interleaved(all_rows: Sequence["Rows"]) -> "Rows":
        """Rows of N batches in turn, so that row i is of batch i % N."""
        columns = zip(*(rows._tensors() for rows in all_rows), strict=True)
        return Rows(*(torch.stack(column, dim=1).flatten(0, 1) for column in columns))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]


@dataclass(frozen=True)
class Losses:
    """Means over rows; `total` is what is descended."""

    total: Float[Tensor, ""]
    instance: Float[Tensor, ""]
    prior: Float[Tensor, ""]

    def values(self) -> Float[Tensor, "3"]:
        """The numbers alone, still on the device."""
        return torch.stack([self.total, self.instance, self.prior]).detach()


class Denoiser(nn.Module):
    """The UNet, and the text encoder where it is trained too, as one module to be wrapped."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel | None) -> None:
        """Take what is trained; without a text encoder prompts come as its states."""
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder

    def forward(
        self,
        noisy: Float[Tensor, "rows c h w"],
        timesteps: Int[Tensor, " rows"],
        states: Float[Tensor, "rows tokens dim"],
        input_ids: Int[Tensor, "rows tokens"] | None = None,
    ) -> Float[Tensor, "rows c h w"]:
        """The UNet's prediction; of prompts as they are now where their tokens are given."""
        if self.text_encoder is not None and input_ids is not None:
            states = self.text_encoder(input_ids)[0]
        inputs = noisy.to(states.dtype), timesteps, states
        return self.unet(*inputs, return_dict=False)[0].float()


class DreamBooth:
    """The batches of one concept, and how wrong an answer to them is."""

    def __init__(self, noise_scheduler: ConfigMixin, cache: Cache, config: Config) -> None:
        """Take the base's noise schedule, the concept's pictures and its options.

        Raises:
            LoLDUError: the base predicts neither noise nor velocity.
        """
        self._noise_scheduler = training_noise_scheduler(noise_scheduler)
        self._cache = cache
        self._prior_loss_weight = config.prior.prior_loss_weight
        self._snr_gamma = config.optimization.snr_gamma
        self._noise_offset = config.optimization.noise_offset
        self._seed = config.optimization.seed
        self.concept_rows = config.optimization.train_batch_size
        wanted = config.prior.prior_batch_size or self.concept_rows
        self.class_rows = wanted if cache.classes else 0

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
            ((self._cache.instances, self.concept_rows), (self._cache.classes, self.class_rows))
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

    def rows(self, batch: Batch) -> Rows:
        """What the network is asked in a batch: concept rows first, then class rows."""
        cache, timesteps = self._cache, batch.timesteps
        noise_scheduler: Any = self._noise_scheduler  # its types want an IntTensor; int64 is right
        latents = cache.mean[batch.views] + cache.std[batch.views] * batch.posterior_noise
        target = batch.noise
        if noise_scheduler.config["prediction_type"] == "v_prediction":
            target = noise_scheduler.get_velocity(latents, batch.noise, timesteps)
        if self._snr_gamma is None:
            weights = torch.ones(len(timesteps), device=timesteps.device)
        else:
            weights = min_snr_weights(noise_scheduler, timesteps, self._snr_gamma)
        prompts = cache.prompt_of_view[batch.views]
        return Rows(
            noisy=noise_scheduler.add_noise(latents, batch.noise, timesteps),
            timesteps=timesteps,
            states=cache.embeddings[prompts],
            input_ids=cache.input_ids[prompts],
            target=target,
            weights=weights,
        )

    def errors(self, squares: Float[Tensor, "rows c h w"], batch: Batch) -> Float[Tensor, " rows"]:
        """Means of the rows' squared errors, weighted as their pictures' masks say."""
        if self._cache.weights is not None:
            squares = squares * self._cache.weights[batch.views]
        return squares.flatten(1).mean(dim=1)

    def losses(self, errors: Float[Tensor, " rows"], concept_rows: int) -> Losses:
        """What rows of a batch add to its means: total = instance + prior_loss_weight * prior.

        Args:
            errors: of rows of the batch, those of the concept first.
            concept_rows: how many are the concept's.

        Source: Ruiz et al., DreamBooth, Eq. 2.
        """
        instance = errors[:concept_rows].sum() / self.concept_rows
        prior = errors[concept_rows:].sum() / max(1, self.class_rows)
        return Losses(instance + self._prior_loss_weight * prior, instance, prior)

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor, device = torch.from_numpy(array), self._cache.mean.device
        if device.type == "cuda":  # a copy from pageable memory would wait for the device
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)


class Objective:
    """The losses of all concepts of a run, by one pass of the network over their rows."""

    def __init__(self, concepts: Sequence[DreamBooth], trained: Trained, config: Config) -> None:
        """Take the concepts, in the order of their adapters; their batches are of one size."""
        self._concepts = concepts
        self._trained = trained
        self._prior_target = config.prior.prior_target

    def draw(self, pass_index: int, process_index: int = 0, num_processes: int = 1) -> list[Batch]:
        """Every concept's batch of forward pass `pass_index`: the one it would have alone."""
        return [
            concept.draw(pass_index, process_index, num_processes) for concept in self._concepts
        ]

    @property
    def rows(self) -> int:
        """How many rows every concept's batch has."""
        return self._concepts[0].concept_rows + self._concepts[0].class_rows

    def losses(
        self, denoiser: nn.Module, batches: Sequence[Batch], part: slice = slice(None)
    ) -> list[Losses]:
        """Mean squared errors of the prediction, on concept rows and on class rows, by concept.

        With `prior_target="base"` the class rows are compared with what the network says with
        nothing trained; both passes have the same shape, so that an adapter that does nothing has
        a prior loss of exactly 0.

        Args:
            denoiser: what predicts.
            batches: a whole batch of every concept.
            part: the rows of each to compute; the losses of all parts add up to those of the batch.
        """
        count, first, live = len(self._concepts), self._concepts[0], self._trained.trains_text
        batches = [batch.part(part) for batch in batches]
        rows = Rows.interleaved(
            [concept.rows(batch) for concept, batch in zip(self._concepts, batches, strict=True)]
        )
        size = len(batches[0].views)
        own = min(max(0, first.concept_rows - part.indices(self.rows)[0]), size)
        target = rows.target
        if own < size and self._prior_target == "base":
            of_concepts, of_classes = rows[: own * count], rows[own * count :]
            asked = [of_concepts, of_classes] if own else [of_classes]
            prediction = torch.cat([some.answered_by(denoiser, live) for some in asked])
            with torch.no_grad(), self._trained.off():
                target = torch.cat([of_concepts.target, of_classes.answered_by(denoiser)])
        else:
            prediction = rows.answered_by(denoiser, live)
        squares = (prediction - target).square()
        return [
            concept.losses(concept.errors(squares[i::count], batch) * rows.weights[i::count], own)
            for i, (concept, batch) in enumerate(zip(self._concepts, batches, strict=True))
        ]


def view_at(pictures: list[range], position: int, seed: int, kind: int) -> int:
    """The view at a position of an endless list in which every epoch is a shuffle of its own."""
    epoch, place = divmod(position, len(pictures))
    order = np.random.default_rng([seed, _ORDER, kind, epoch]).permutation(len(pictures))
    views = pictures[order[place]]
    return views[int(np.random.default_rng([seed, _VIEWS, kind, position]).integers(len(views)))]


def training_noise_scheduler(noise_scheduler: ConfigMixin) -> DDPMScheduler:
    """The base's own noise schedule and prediction type, apart from its sampler's state.

    Raises:
        LoLDUError: for a prediction type other than epsilon and v_prediction.
    """
    scheduler = DDPMScheduler.from_config(noise_scheduler.config)
    assert isinstance(scheduler, DDPMScheduler)
    prediction_type = scheduler.config["prediction_type"]
    if prediction_type not in ("epsilon", "v_prediction"):
        raise LoLDUError(
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


def lr_factor(optimization: OptimizationConfig, step: int) -> float:
    """What the learning rates of a step are multiplied by: warm-up, then the schedule down to 0."""
    warmup, last = optimization.lr_warmup_steps, optimization.max_train_steps
    if step < warmup:
        return (step + 1) / warmup
    left = 1 - (step - warmup) / max(1, last - warmup)
    return {
        "constant": 1.0,
        "cosine": 0.5 * (1 - math.cos(math.pi * left)),
        "linear": left,
    }[optimization.lr_scheduler]
