"""The loss at fixed noise, on pictures that are not trained on: it shows overfitting."""

from collections.abc import Mapping

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

    def __init__(self, concepts: Mapping[str, DreamBooth], trained: Trained) -> None:
        """Draw the rows of every concept, once."""
        self._concepts, self._trained = concepts, trained
        self._batches: dict[str, Batch] = {
            name: concept.draw_fixed(ROWS) for name, concept in concepts.items()
        }

    @torch.no_grad()
    def measure(self, denoiser: nn.Module) -> dict[str, float]:
        """Return the loss of every concept, in forward passes of the size of training's."""
        live, errors = self._trained.trains_text, list[torch.Tensor]()
        for name, concept in self._concepts.items():
            with self._trained.only(name):
                for start in range(0, ROWS, concept.concept_rows):
                    batch = self._batches[name].part(slice(start, start + concept.concept_rows))
                    rows = concept.rows(batch)
                    squares = (rows.answered_by(denoiser, live) - rows.target).square()
                    errors.append(concept.errors(squares, batch))
        means = torch.cat(errors).unflatten(0, (-1, ROWS)).mean(dim=1).tolist()
        return dict(zip(self._concepts, means, strict=True))
