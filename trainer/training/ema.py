"""A running average of the trained parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """An exponential moving average of parameters; without a decay it does nothing.

    average <- d average + (1 - d) parameters after every step, in one fused call that the host does
    not wait for.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float | None) -> None:
        """Start the average at the current parameters."""
        self._decay = decay
        self._parameters: list[Tensor] = [] if decay is None else [*parameters]
        self._average = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after a step, counted from 1, to the average."""
        if self._decay is not None:
            weight = 1 - decay_at(step, self._decay)
            torch._foreach_lerp_(self._average, self._parameters, weight)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block, the parameters have the average's values.

        The values are copied; the parameters stay the same objects.
        """
        trained = [parameter.detach().clone() for parameter in self._parameters]
        self._write(self._average)
        try:
            yield
        finally:
            self._write(trained)

    def state(self) -> list[Tensor]:
        """Return the average, for a checkpoint."""
        return self._average

    @torch.no_grad()
    def load(self, state: list[Tensor]) -> None:
        """Load the average of a checkpoint.

        Raises:
            ValueError: If its shapes are not those of the parameters.
        """
        if [tensor.shape for tensor in state] != [tensor.shape for tensor in self._average]:
            raise ValueError("the average belongs to other parameters")
        for average, saved in zip(self._average, state, strict=True):
            average.copy_(saved)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self._parameters, values, strict=True):
            parameter.copy_(value)


def decay_at(step: int, decay: float) -> float:
    """Return the decay of a step, counted from 1: 0 first, then step / (step + 9) up to `decay`.

    With a constant decay a young average would be mostly its start. Source: diffusers' EMAModel.
    """
    return min(decay, step / (step + 9)) if step > 1 else 0.0
