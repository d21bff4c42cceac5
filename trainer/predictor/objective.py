"""Draws subjects for training a predictor, and computes the base's error with predictions."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int, Num
from torch import Tensor
from torch.func import functional_call

from loldu import LoLDUConfig
from loldu.adapter.components import layers_with
from loldu.base.families import family_of, network_of
from loldu.concept.format import Concept
from loldu.predict.predictor import frame_of
from loldu.predict.reader import PictureReader
from trainer.methods.loldu import Diagonals
from trainer.methods.method import add_adapters
from trainer.options.config import AdapterConfig
from trainer.predictor.options import PredictorConfig
from trainer.predictor.subjects import Subjects
from trainer.training.objective import Denoiser

NAME = "predicted"
"""Name of the adapter whose offsets the network predicts."""
_TRAINED, _HELD_OUT = 1, 2
"""Streams of the seed."""
_FIXED_BATCHES = 8


def add_frame(
    pipeline: DiffusionPipeline, config: PredictorConfig, metadata: dict[str, Any]
) -> Concept:
    """Add the adapter whose offsets are predicted, and return the frame of the predictions.

    Raises:
        LoLDUError: If no layer matches, or the adapter refuses its options.
    """
    reader = config.reader

    def make(model: Any, targets: list[str], rank: int) -> Diagonals:  # noqa: ANN401
        options = LoLDUConfig(
            r=rank,
            pivoting=reader.pivoting,
            normalize_directions=reader.normalize_directions,
            train_scale=False,
            target_modules=targets,
        )
        return Diagonals(model, {NAME: options})

    adapter = AdapterConfig(
        rank=reader.rank, pivoting=reader.pivoting, target_modules=reader.target_modules
    )
    for part in add_adapters(pipeline, adapter, make).values():
        for parameter in part.parameters(NAME):
            parameter.requires_grad_(False)
    return frame_of(pipeline, NAME, metadata)


@dataclass(frozen=True)
class Draw:
    """The random draws of a step.

    Attributes:
        read: Pictures that the network reads, for every subject.
        denoised: Pictures that the base denoises; the rows of a subject follow each other.
        timesteps: How noisy they become.
        noise: The noise.
        posterior_noise: The noise that draws latents from the VAE's posterior.
        spread_noise: The noise that draws concepts from the spread.
    """

    read: Int[np.ndarray, "subjects pictures"]
    denoised: Int[Tensor, " rows"]
    timesteps: Num[Tensor, " rows"]
    noise: Float[Tensor, "rows ..."]
    posterior_noise: Float[Tensor, "rows ..."]
    spread_noise: Float[Tensor, "subjects embedding"]


class Losses(NamedTuple):
    """The loss of a step, and its parts: the base's errors, and the squared norm of the changes."""

    total: Float[Tensor, ""]
    denoising: Float[Tensor, ""]
    squared_norm: Float[Tensor, ""]


class PredictorObjective:
    """The base's denoising error on other pictures of the subjects that were read."""

    def __init__(
        self,
        pipeline: DiffusionPipeline,
        frame: Concept,
        subjects: Subjects,
        config: PredictorConfig,
    ) -> None:
        """Take the base with the adapter of `add_frame`, and the subjects.

        The last subjects are held out.
        """
        self._config, self._subjects = config.fitting, subjects
        self._embedding = config.reader.embedding
        self._spread_weight = config.reader.spread_weight
        self._schedule = family_of(pipeline).noise_schedule(pipeline)
        self._denoiser = Denoiser(pipeline)
        self._frame = frame.layers
        self._layers = layers_with(network_of(pipeline), NAME)
        wanted, count = config.data.held_out_subjects, len(subjects.pictures)
        held_out = min(200, count // 20) if wanted is None else min(wanted, count - 1)
        self._trained = subjects.pictures[: count - held_out]
        self._held_out = subjects.pictures[count - held_out :]

    def draw(self, step: int, stream: int = _TRAINED) -> Draw:
        """Return the draws of a step, which depend on seed and step alone."""
        config = self._config
        rng = np.random.default_rng([config.seed, stream, step])
        known = self._held_out if stream == _HELD_OUT else self._trained
        each = config.rows_per_subject
        count = max(1, config.train_batch_size // each)
        chosen = [known[index] for index in rng.integers(len(known), size=count)]
        most = min(config.most_pictures, min(map(len, chosen)) - 1)
        chances = 1 / np.arange(1, most + 1) ** 2  # few pictures cost less, and are harder
        number = 1 + int(rng.choice(most, p=chances / chances.sum()))
        read, denoised = np.empty((count, number), np.int64), np.empty((count, each), np.int64)
        for row, pictures in enumerate(chosen):
            order = pictures.start + rng.permutation(len(pictures))
            read[row], denoised[row] = order[:number], rng.choice(order[number:], each)
        shape, rows = self._subjects.cache.mean.shape[1:], count * each
        span = config.min_timestep / 1000, config.max_timestep / 1000
        # Timesteps are spread evenly over the rows, so that batches differ less.
        parts = [
            self._schedule.draw_timesteps(rng, 1, tuple(shape), part)
            for part in pairwise(np.linspace(*span, rows + 1).tolist())
        ]
        timesteps = rng.permutation(np.concatenate(parts))
        noise = rng.standard_normal((2, rows, *shape), dtype=np.float32)
        spread = rng.standard_normal((count, self._embedding), dtype=np.float32)
        arrays = denoised.flatten(), timesteps, noise[0], noise[1], spread
        device = self._subjects.cache.mean.device
        return Draw(read, *(torch.from_numpy(array).to(device) for array in arrays))

    def losses(self, reader: PictureReader, draw: Draw) -> Losses:
        """Return the loss of the network on a draw, with its graph."""
        config = self._config
        draws = draw.spread_noise if reader.config.spread and reader.training else None
        numbers, divergence = reader(self._pixels(draw.read), draws)
        errors = self._errors(numbers.repeat_interleave(config.rows_per_subject, 0), draw)
        total = denoising = errors.mean()
        squared = numbers.new_zeros(())
        if config.delta_norm_penalty:
            squared = self.squared_norms(numbers).mean()
            total = total + config.delta_norm_penalty * squared
        if self._spread_weight:
            total = total + self._spread_weight * divergence.mean()
        return Losses(total, denoising, squared)

    @torch.no_grad()
    def held_out(self, reader: PictureReader) -> dict[str, float]:
        """Return the loss on held-out subjects at fixed noise, beside two others; {} without any.

        `other_loss` is the loss with the concept of another subject: a network that is not below it
        has learned what subjects share, and nothing about one. `base_loss` is the base's own. The
        network reads without its spread.
        """
        if not self._held_out:
            return {}
        was, sums = reader.training, np.zeros(3)
        reader.eval()
        for index in range(_FIXED_BATCHES):
            draw = self.draw(index, _HELD_OUT)
            numbers = reader(self._pixels(draw.read)).numbers
            numbers = numbers.repeat_interleave(self._config.rows_per_subject, 0)
            other = numbers.roll(self._config.rows_per_subject, 0)
            compared = numbers, other, torch.zeros_like(numbers)
            sums += [float(self._errors(each, draw).mean()) for each in compared]
        reader.train(was)
        names = "held_out_loss", "other_loss", "base_loss"
        return dict(zip(names, (sums / _FIXED_BATCHES).tolist(), strict=True))

    def squared_norms(self, numbers: Float[Tensor, "rows numbers"]) -> Float[Tensor, " rows"]:
        """Return the exact ``Σ ‖delta_W‖_F² = Σ deltaᵀ G delta`` over the layers, for every row."""
        total = numbers.new_zeros(len(numbers))
        for layer, part in zip(self._frame, self._parts(numbers), strict=True):
            shared, r = self._layers[layer.name].factors_of(NAME), layer.delta.numel()
            delta = part * (layer.delta.to(part) * shared.gain[:r])
            total = total + ((delta @ shared.metric[:r, :r].to(delta)) * delta).sum(1)
        return total

    def _errors(self, numbers: Float[Tensor, "rows numbers"], draw: Draw) -> Float[Tensor, " rows"]:
        """Return the weighted mean squared error of every row with its own predicted concept.

        The offsets of the adapter get a row for each row of the batch, in one pass. (Gradient
        checkpointing would lose them: it calls the network again after the pass.)
        """
        cache, timesteps, gamma = self._subjects.cache, draw.timesteps, self._config.snr_gamma
        latents = cache.mean[draw.denoised] + cache.std[draw.denoised] * draw.posterior_noise
        noisy, target = self._schedule.noise_and_target(latents, draw.noise, timesteps)
        offsets = {
            f"network.{layer.name}.loldu_diagonal.{NAME}.dz": part
            for layer, part in zip(self._frame, self._parts(numbers), strict=True)
        }
        prompts = cache.conditioning_of(cache.prompt_of_view[draw.denoised], draw.denoised)
        answer = functional_call(self._denoiser, offsets, (noisy, timesteps, prompts))
        squares = (answer - target).square()
        if cache.weights is not None:
            squares = squares * cache.weights[draw.denoised]
        errors = squares.flatten(1).mean(1)
        return (
            errors if gamma is None else errors * self._schedule.min_snr_weights(timesteps, gamma)
        )

    def _parts(self, numbers: Float[Tensor, "rows numbers"]) -> tuple[Tensor, ...]:
        return numbers.split([layer.delta.numel() for layer in self._frame], 1)

    def _pixels(
        self, pictures: Int[np.ndarray, "subjects pictures"]
    ) -> Float[Tensor, "subjects pictures 3 px px"]:
        chosen = torch.from_numpy(self._subjects.pixels[pictures])
        return chosen.to(self._subjects.cache.mean.device).movedim(-1, 2).float() / 127.5 - 1
