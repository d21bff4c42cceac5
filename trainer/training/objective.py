"""The DreamBooth objective, with randomness that depends on (seed, step) alone."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from diffusers import DiffusionPipeline
from jaxtyping import Float, Int, Num
from torch import Tensor, nn
from torch.nn.functional import huber_loss

from loldu.base.families import family_of, network_of
from loldu.base.family import Conditioning
from trainer.methods.trained import Trained
from trainer.options.config import Config
from trainer.training.cache import Cache

_ORDER, _VIEWS, _NOISE, _FIXED, _CAPTIONS = 1, 2, 3, 4, 5
"""Streams of the seed: every kind of draw has its own."""
CONCEPT, CLASS = 0, 1
"""Kinds of rows."""
_COLUMNS = ("noisy", "timesteps", "target", "weights", "marked")


@dataclass(frozen=True)
class Batch:
    """The random draws of one forward pass: concept rows first, then class rows.

    Attributes:
        views: Views of the pictures.
        timesteps: How noisy they become.
        noise: The noise.
        posterior_noise: The noise that draws latents from the VAE's posterior.
        prompts: Rows of the cache's conditioning.
    """

    views: Int[Tensor, " rows"]
    timesteps: Num[Tensor, " rows"]
    noise: Float[Tensor, "rows ..."]
    posterior_noise: Float[Tensor, "rows ..."]
    prompts: Int[Tensor, " rows"]

    def part(self, rows: slice) -> "Batch":
        """Return some of the rows."""
        return Batch(*(getattr(self, field.name)[rows] for field in fields(self)))


@dataclass(frozen=True)
class Rows:
    """Inputs of the network, one row each, and the right prediction for them.

    Attributes:
        noisy: Noisy latents.
        timesteps: How noisy they are.
        target: The right prediction.
        weights: Weights of the rows' errors.
        marked: Share of every latent that is trained on `target`; the rest on the base's answer.
        conditioning: Prompts, encoded by the frozen text encoders.
    """

    noisy: Float[Tensor, "rows ..."]
    timesteps: Num[Tensor, " rows"]
    target: Float[Tensor, "rows ..."]
    weights: Float[Tensor, " rows"]
    marked: Float[Tensor, "rows 1 h w"]
    conditioning: Conditioning

    def __getitem__(self, part: slice) -> "Rows":
        """Return some of the rows."""
        return self._of({name: tensor[part] for name, tensor in self._columns().items()})

    def answered_by(self, denoiser: nn.Module, live: bool = False) -> Float[Tensor, "rows ..."]:
        """Return the network's prediction; `live` encodes the prompts anew."""
        return denoiser(self.noisy, self.timesteps, self.conditioning, live)

    @staticmethod
    def interleaved(all_rows: Sequence["Rows"]) -> "Rows":
        """Return the rows of N batches in turn: row i is of batch i % N."""
        columns = [rows._columns() for rows in all_rows]
        return Rows._of(
            {
                name: torch.stack([of_batch[name] for of_batch in columns], dim=1).flatten(0, 1)
                for name in columns[0]
            }
        )

    def _columns(self) -> dict[str, Tensor]:
        own = {name: getattr(self, name) for name in _COLUMNS}
        return {**self.conditioning, **own}

    @staticmethod
    def _of(columns: dict[str, Tensor]) -> "Rows":
        own = [columns.pop(name) for name in _COLUMNS]
        return Rows(*own, conditioning=columns)


@dataclass(frozen=True)
class Losses:
    """Mean losses over rows; `total` is minimized."""

    total: Float[Tensor, ""]
    instance: Float[Tensor, ""]
    prior: Float[Tensor, ""]

    def values(self) -> Float[Tensor, "3"]:
        """Return the three numbers, detached and still on the device."""
        return torch.stack([self.total, self.instance, self.prior]).detach()


class Denoiser(nn.Module):
    """The network, and the text encoders if they are trained, as one module for accelerate."""

    def __init__(self, pipeline: DiffusionPipeline, *, trains_text: bool = False) -> None:
        """Take the network of a pipeline, and its text encoders if they are trained."""
        super().__init__()
        self._family = family_of(pipeline)
        self.network = network_of(pipeline)
        names = self._family.text_encoders if trains_text else ()
        self.text_encoders = nn.ModuleDict({name: getattr(pipeline, name) for name in names})

    def forward(
        self,
        noisy: Float[Tensor, "rows ..."],
        timesteps: Num[Tensor, " rows"],
        conditioning: Conditioning,
        live: bool = False,
    ) -> Float[Tensor, "rows ..."]:
        """Return the network's prediction; `live` encodes the prompts anew."""
        if self.text_encoders and live:
            encoders = dict(self.text_encoders.items())
            conditioning = self._family.encode_again(encoders, conditioning)
        return self._family.predict(self.network, noisy, timesteps, conditioning)


class DreamBooth:
    """The batches and losses of one concept."""

    def __init__(self, pipeline: DiffusionPipeline, cache: Cache, config: Config) -> None:
        """Take the base's noise schedule, the concept's pictures and its options.

        Raises:
            LoLDUError: If the base predicts something that cannot be trained.
        """
        self._noise_schedule = family_of(pipeline).noise_schedule(pipeline)
        self._cache = cache
        self._prior_loss_weight = config.prior.prior_loss_weight
        self._snr_gamma = config.optimization.snr_gamma
        self._noise_offset = config.optimization.noise_offset
        self._seed = config.optimization.seed
        self._captions = config.captions
        lowest, highest = config.optimization.min_timestep, config.optimization.max_timestep
        self._span = lowest / 1000, highest / 1000
        self._prompts: list[int] = cache.prompt_of_view.tolist()
        self.concept_rows = config.optimization.train_batch_size
        wanted = config.prior.prior_batch_size or self.concept_rows
        self.class_rows = wanted if cache.classes else 0

    def draw(self, pass_index: int, process_index: int = 0, num_processes: int = 1) -> Batch:
        """Return the batch of forward pass `pass_index`, counted from the start of the run.

        It is drawn on the CPU for all processes together and then shared out. So two processes see
        the rows of one process with twice the batch, and a resumed run sees the rows of an
        uninterrupted one. A noise offset is part of the noise that the network predicts.

        Source: Guttenberg, Diffusion with Offset Noise (the noise offset).
        """
        parts = [
            self._drawn(kind, pass_index, pass_index, process_index, num_processes)
            for kind in range(2)
        ]
        return Batch(*(self._to_device(np.concatenate(part)) for part in zip(*parts, strict=True)))

    def pictures(self, kind: int) -> list[range]:
        """Return the views of the concept's pictures (0) or of the class pictures (1)."""
        return (self._cache.instances, self._cache.classes)[kind]

    def draw_kind(
        self, kind: int, pass_index: int, turn: int, process_index: int, num_processes: int
    ) -> Batch:
        """Return the concept rows (0) or the class rows (1) of a forward pass.

        Args:
            kind: Kind of the rows.
            pass_index: Number of the pass, which decides the noise.
            turn: Number of earlier passes with these pictures, which decides who is next.
            process_index: Number of this process.
            num_processes: Number of processes.
        """
        drawn = self._drawn(kind, pass_index, turn, process_index, num_processes)
        return Batch(*map(self._to_device, drawn))

    def _drawn(
        self, kind: int, pass_index: int, turn: int, process_index: int, num_processes: int
    ) -> tuple[np.ndarray, ...]:
        pictures, rows = self.pictures(kind), (self.concept_rows, self.class_rows)[kind]
        shape = self._cache.mean.shape[1:]
        share = rows * num_processes
        mine = slice(process_index * rows, (process_index + 1) * rows)
        start = turn * share + process_index * rows
        views = [view_at(pictures, start + row, self._seed, kind) for row in range(rows)]
        prompts = [self._prompt_at(view, start + row, kind) for row, view in enumerate(views)]
        rng = np.random.default_rng([self._seed, _NOISE, kind, pass_index])
        timesteps = self._noise_schedule.draw_timesteps(rng, share, shape, self._span)
        noise = rng.standard_normal((2, share, *shape), dtype=np.float32)
        if self._noise_offset:  # drawn last, so that it changes no other draw
            offset = rng.standard_normal((share, shape[0], *[1] * len(shape[1:])), np.float32)
            noise[0] += self._noise_offset * offset
        chosen = np.array(views, np.int64), timesteps[mine], noise[0, mine], noise[1, mine]
        return *chosen, np.array(prompts, np.int64)

    @property
    def held_out(self) -> int:
        """Number of pictures that are measured and not trained on."""
        return len(self._cache.held_out)

    def draw_fixed(self, rows: int) -> Batch:
        """Return rows of held-out pictures whose noise never changes, or else of trained ones.

        Pictures take the rows in turn. A picture shows its first view, and has the same noise
        whatever the other options are.
        """
        pictures = self._cache.held_out or [*dict.fromkeys(self._cache.instances)]
        rng = np.random.default_rng([self._seed, _FIXED])
        views = [pictures[row % len(pictures)].start for row in range(rows)]
        shape = self._cache.mean.shape[1:]
        timesteps = self._noise_schedule.draw_timesteps(rng, rows, shape, self._span)
        noise = rng.standard_normal((2, rows, *shape), dtype=np.float32)
        prompts = np.array([self._prompts[view] for view in views], np.int64)
        parts = (np.array(views, np.int64), timesteps, noise[0], noise[1], prompts)
        return Batch(*map(self._to_device, parts))

    def _prompt_at(self, view: int, position: int, kind: int) -> int:
        """Return the prompt of a row; those of class pictures never change."""
        captions, variants = self._captions, self._cache.variants
        plain = self._prompts[view]
        if kind or (variants is None and not captions.caption_dropout):
            return plain
        rng = np.random.default_rng([self._seed, _CAPTIONS, position])
        dropped, choice = rng.random() < captions.caption_dropout, rng.random()
        if dropped and self._cache.empty is not None:
            return self._cache.empty
        return plain if variants is None else variants[view][int(choice * len(variants[view]))]

    def rows(self, batch: Batch) -> Rows:
        """Return the network's inputs for a batch: concept rows first, then class rows."""
        cache, timesteps = self._cache, batch.timesteps
        latents = cache.mean[batch.views] + cache.std[batch.views] * batch.posterior_noise
        noisy, target = self._noise_schedule.noise_and_target(latents, batch.noise, timesteps)
        if self._snr_gamma is None:
            weights = torch.ones(len(timesteps), device=timesteps.device)
        else:
            weights = self._noise_schedule.min_snr_weights(timesteps, self._snr_gamma)
        return Rows(
            noisy=noisy,
            timesteps=timesteps,
            target=target,
            weights=weights,
            marked=cache.marked_of(batch.views),
            conditioning=cache.conditioning_of(batch.prompts, batch.views),
        )

    @property
    def keeps_unmasked(self) -> bool:
        """Whether the black parts of masks are trained on the base's answer."""
        return self._cache.marked is not None

    def errors(self, squares: Float[Tensor, "rows ..."], batch: Batch) -> Float[Tensor, " rows"]:
        """Return the mean squared error of every row, weighted by its picture's mask."""
        if self._cache.weights is not None:
            squares = squares * self._cache.weights[batch.views]
        return squares.flatten(1).mean(dim=1)

    def losses(
        self,
        errors: Float[Tensor, " rows"],
        concept_rows: int,
        penalty: Float[Tensor, ""] | float = 0.0,
    ) -> Losses:
        """Return the share of some rows in the batch's mean losses.

        total = instance + prior_loss_weight * prior + penalty

        Args:
            errors: Errors of the rows, concept rows first.
            concept_rows: Number of concept rows.
            penalty: Their share of a penalty on the change of the weights.

        Source: Ruiz et al., DreamBooth, Eq. 2.
        """
        instance = errors[:concept_rows].sum() / self.concept_rows
        prior = errors[concept_rows:].sum() / max(1, self.class_rows)
        return Losses(instance + self._prior_loss_weight * prior + penalty, instance, prior)

    def _to_device(self, array: np.ndarray) -> Tensor:
        tensor, device = torch.from_numpy(array), self._cache.mean.device
        if device.type == "cuda":  # copying pageable memory would wait for the device
            tensor = tensor.pin_memory()
        return tensor.to(device, non_blocking=True)


class Objective:
    """The losses of all concepts of a run, from one pass of the network over their rows."""

    def __init__(self, concepts: Sequence[DreamBooth], trained: Trained, config: Config) -> None:
        """Take the concepts, in the order of their adapters; their batches have one size."""
        self._concepts = concepts
        self._trained = trained
        self._prior_target = config.prior.prior_target
        self._keeps_unmasked = any(concept.keeps_unmasked for concept in concepts)
        self._delta_norm_penalty = config.optimization.delta_norm_penalty
        huber = config.optimization.loss == "huber"
        self._huber_delta = config.optimization.huber_delta if huber else None

    def draw(self, pass_index: int, process_index: int = 0, num_processes: int = 1) -> list[Batch]:
        """Return every concept's batch of a forward pass: the batch that it would have alone."""
        return [
            concept.draw(pass_index, process_index, num_processes) for concept in self._concepts
        ]

    @property
    def rows(self) -> int:
        """Rows in every concept's batch."""
        return self._concepts[0].concept_rows + self._concepts[0].class_rows

    def losses(
        self, denoiser: nn.Module, batches: Sequence[Batch], part: slice = slice(None)
    ) -> list[Losses]:
        """Return every concept's mean squared errors, on its concept rows and its class rows.

        With `prior_target="base"` the target of class rows is the base's own prediction, and with
        `unmasked_target="base"` that of the black parts of masks. Both passes have the same shape,
        so an adapter that does nothing has a prior loss of exactly 0.

        Args:
            denoiser: The network, as accelerate wraps it.
            batches: A whole batch of every concept.
            part: Rows of each batch to compute; the losses of all parts add up to the batch's.
        """
        count, first, live = len(self._concepts), self._concepts[0], self._trained.trains_text
        batches = [batch.part(part) for batch in batches]
        rows = Rows.interleaved(
            [concept.rows(batch) for concept, batch in zip(self._concepts, batches, strict=True)]
        )
        size = len(batches[0].views)
        own = min(max(0, first.concept_rows - part.indices(self.rows)[0]), size)
        kinds = {CONCEPT: rows[: own * count], CLASS: rows[own * count :]}
        asked = {kind: some for kind, some in kinds.items() if len(some.weights)}
        if not any(self._asks_base(kind) for kind in asked):
            asked = {CONCEPT: rows}
        prediction = torch.cat([some.answered_by(denoiser, live) for some in asked.values()])
        target = torch.cat([self._target(kind, some, denoiser) for kind, some in asked.items()])
        squares = penalties(prediction, target, self._huber_delta)
        return [
            concept.losses(
                concept.errors(squares[i::count], batch) * rows.weights[i::count],
                own,
                self._trained.penalty(name, self._delta_norm_penalty * size / self.rows),
            )
            for i, (name, concept, batch) in enumerate(
                zip(self._trained.concepts, self._concepts, batches, strict=True)
            )
        ]

    def _asks_base(self, kind: int) -> bool:
        """Tell whether the base's answer is a target of rows of a kind."""
        return self._prior_target == "base" if kind == CLASS else self._keeps_unmasked

    def _target(self, kind: int, rows: Rows, denoiser: nn.Module) -> Float[Tensor, "rows ..."]:
        """Return the right prediction for rows of one kind; the base gives its part of it."""
        if not self._asks_base(kind):
            return rows.target
        with torch.no_grad(), self._trained.off():
            answer = rows.answered_by(denoiser)
        return answer if kind == CLASS else torch.lerp(answer, rows.target, rows.marked)


def penalties(
    prediction: Float[Tensor, "rows ..."],
    target: Float[Tensor, "rows ..."],
    huber_delta: float | None,
) -> Float[Tensor, "rows ..."]:
    """Return e² for every error e, or with the Huber loss d (2 |e| - d) where |e| is above d.

    It is twice the usual Huber loss, so that small errors count as without it and learning rates
    stay. Smooth L1 with beta = d is this divided by 2 d.

    Source: Huber, Robust Estimation of a Location Parameter, 1964.
    """
    if huber_delta is None:
        return (prediction - target).square()
    return 2 * huber_loss(prediction, target, reduction="none", delta=huber_delta)


def view_at(pictures: list[range], position: int, seed: int, kind: int) -> int:
    """Return the view at a position of an endless list with a new shuffle every epoch."""
    epoch, place = divmod(position, len(pictures))
    order = np.random.default_rng([seed, _ORDER, kind, epoch]).permutation(len(pictures))
    views = pictures[order[place]]
    return views[int(np.random.default_rng([seed, _VIEWS, kind, position]).integers(len(views)))]
