"""The loss at fixed noise, on pictures that are not trained on: it shows overfitting."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from trainer.methods.trained import Trained
from trainer.training.objective import Batch, DreamBooth

ROWS = 32
"""Rows of a measurement; the pictures take them in turn."""


class HeldOutLoss:
    """Mean squared errors on fixed rows: what changes between two steps is the network alone.

    Masks weigh the errors as in training. Options that change the loss, such as --snr_gamma, do
    not, so that runs with different options compare.
    """

    def __init__(self, concepts: Mapping[str, Sequence[DreamBooth]], trained: Trained) -> None:
        """Draw the rows of every concept, once; a concept may have several buckets."""
        self._trained = trained
        self._batches: dict[str, list[tuple[DreamBooth, Batch]]] = {}
        for name, buckets in concepts.items():
            counts = [bucket.held_out for bucket in buckets]
            if not any(counts):
                counts = [len({*bucket.pictures(0)}) for bucket in buckets]
            self._batches[name] = [
                (bucket, bucket.draw_fixed(max(1, round(ROWS * count / sum(counts)))))
                for bucket, count in zip(buckets, counts, strict=True)
                if count
            ]

    @torch.no_grad()
    def measure(self, denoiser: nn.Module) -> dict[str, float]:
        """Return the loss of every concept, in forward passes of the size of training's."""
        live, means = self._trained.trains_text, list[torch.Tensor]()
        for name, batches in self._batches.items():
            errors = list[torch.Tensor]()
            with self._trained.only(name):
                for concept, whole in batches:
                    for start in range(0, len(whole.views), concept.concept_rows):
                        batch = whole.part(slice(start, start + concept.concept_rows))
                        rows = concept.rows(batch)
                        squares = (rows.answered_by(denoiser, live) - rows.target).square()
                        errors.append(concept.errors(squares, batch))
            means.append(torch.cat(errors).mean())
        return dict(zip(self._batches, torch.stack(means).tolist(), strict=True))
