"""Pictures in their own shapes: every pass of a concept has the pictures of one bucket."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from loldu.base.families import family_of
from loldu.errors import LoLDUError
from loldu.pictures.buckets import bucket_of
from loldu.pictures.folder import CaptionedImage
from loldu.pictures.open import load_image
from trainer.methods.trained import Trained
from trainer.options.config import Config
from trainer.training.cache import Cache, build_cache
from trainer.training.objective import (
    CLASS,
    CONCEPT,
    Batch,
    DreamBooth,
    Losses,
    Objective,
    penalties,
)

_BUCKETS = 6
"""Stream of the seed for the order of the buckets; the objective has lower ones."""


def bucket_caches(
    pipeline: DiffusionPipeline,
    instances: Sequence[CaptionedImage],
    classes: Sequence[CaptionedImage],
    config: Config,
    held_out: Sequence[CaptionedImage],
) -> list[Cache]:
    """Encode every picture in the shape of its bucket, with a cache for each bucket.

    Raises:
        LoLDUError: If the resolution is too small for the base, or a picture cannot be used.
    """
    options, multiple = config.instance, family_of(pipeline).picture_multiple(pipeline)
    if options.resolution < multiple:
        raise LoLDUError(
            f"--aspect_buckets needs a --resolution of at least {multiple} with this base; it is "
            f"{options.resolution}."
        )

    def shape_of(picture: CaptionedImage) -> tuple[int, int]:
        return bucket_of(load_image(picture.path).size, options.resolution, multiple)

    groups: dict[tuple[int, int], tuple[list[CaptionedImage], ...]] = {}
    for kind, pictures in enumerate((instances, classes, held_out)):
        for picture in pictures:
            groups.setdefault(shape_of(picture), ([], [], []))[kind].append(picture)
    return [
        build_cache(
            pipeline,
            own,
            own_classes,
            options,
            seed=config.optimization.seed,
            held_out=own_held_out,
            captions=config.captions,
            shape=shape,
        )
        for shape, (own, own_classes, own_held_out) in sorted(groups.items())
    ]


def place_of(pass_index: int, counts: Sequence[int], seed: int, kind: int) -> tuple[int, int]:
    """Return the bucket of a forward pass, and the number of passes that it had before.

    In as many passes as there are pictures, each bucket has a pass for each of its pictures, in a
    new order every time: so every picture is shown equally often.
    """
    epoch, place = divmod(pass_index, sum(counts))
    rng = np.random.default_rng([seed, _BUCKETS, kind, epoch])
    order = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    bucket = int(order[place])
    return bucket, epoch * counts[bucket] + int((order[:place] == bucket).sum())


@dataclass(frozen=True)
class Part:
    """Rows of one kind in one shape, and the bucket that they come from."""

    bucket: DreamBooth
    kind: int
    batch: Batch


class BucketedObjective(Objective):
    """The losses of all concepts, with a pass through the network for each shape.

    With pictures of one shape it draws what `Objective` draws.
    """

    def __init__(
        self, buckets: Mapping[str, Sequence[DreamBooth]], trained: Trained, config: Config
    ) -> None:
        """Take the buckets of every concept, in the order of their adapters."""
        super().__init__([], trained, config)
        self._buckets = buckets
        self._seed = config.optimization.seed
        every = [bucket for own in buckets.values() for bucket in own]
        self._keeps_unmasked = any(bucket.keeps_unmasked for bucket in every)
        self._concept_rows = every[0].concept_rows
        self._class_rows = max(bucket.class_rows for bucket in every)

    @property
    def rows(self) -> int:
        """Rows in every concept's batch."""
        return self._concept_rows + self._class_rows

    def draw(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, pass_index: int, process_index: int = 0, num_processes: int = 1
    ) -> list[list[Part]]:
        """Return every concept's rows of a forward pass, in one shape for each kind."""
        drawn: list[list[Part]] = []
        for buckets in self._buckets.values():
            parts: list[Part] = []
            for kind in (CONCEPT, CLASS):
                own = [bucket for bucket in buckets if bucket.pictures(kind)]
                if not own:
                    continue
                counts = [len(bucket.pictures(kind)) for bucket in own]
                chosen, turn = place_of(pass_index, counts, self._seed, kind)
                place = kind, pass_index, turn, process_index, num_processes
                parts.append(Part(own[chosen], kind, own[chosen].draw_kind(*place)))
            drawn.append(parts)
        return drawn

    def losses(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, denoiser: nn.Module, batches: Sequence[Sequence[Part]], part: slice = slice(None)
    ) -> list[Losses]:
        """Return every concept's mean errors, as `Objective.losses`."""
        found: list[Losses] = []
        for name, parts in zip(self._buckets, batches, strict=True):
            several = len(self._buckets) > 1
            with self._trained.only(name) if several else nullcontext():
                errors = [self._errors(denoiser, each, part) for each in parts]
            count = sum(map(len, errors))
            penalty = self._trained.penalty(name, self._delta_norm_penalty * count / self.rows)
            found.append(parts[-1].bucket.losses(torch.cat(errors), len(errors[0]), penalty))
        return found

    def _errors(self, denoiser: nn.Module, each: Part, part: slice) -> Tensor:
        """Return the errors of those rows of one kind that are among some of a batch's rows."""
        first = 0 if each.kind == CONCEPT else self._concept_rows
        start, stop, _ = part.indices(self.rows)
        batch = each.batch.part(slice(max(0, start - first), max(0, stop - first)))
        rows = each.bucket.rows(batch)
        if not len(batch.views):
            return rows.weights
        prediction = rows.answered_by(denoiser, self._trained.trains_text)
        target = self._target(each.kind, rows, denoiser)
        squares = penalties(prediction, target, self._huber_delta)
        return each.bucket.errors(squares, batch) * rows.weights
