"""Out of memory: said in one sentence, or met by holding less of a step at once."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from diffusers import ModelMixin

from loldu.errors import LoLDUError
from trainer.methods.method import Trained
from trainer.options.config import Config

logger = logging.getLogger(__name__)

Result = TypeVar("Result")


class MemoryLadder:
    """Goes down a rung each time the passes of a step need too much memory, and stays there.

    The rungs: as asked; with gradient checkpointing; the rows of a batch in halves, quarters, down
    to one at a time. What is drawn and its loss are the same on every rung, so training is the
    same to rounding. A resumed run finds its rung again. It is for one process: of several, those
    that have the memory would wait for ever for the gradients of the one that has not.
    """

    def __init__(
        self,
        network: ModelMixin,
        trained: Trained,
        accelerator: Accelerator,
        rows: int,
        *,
        adapt: bool,
    ) -> None:
        """Start at the top, with so many rows a concept; without `adapt` there is only that."""
        self._network, self._trained, self._accelerator = network, trained, accelerator
        self._rows = self._rows_at_once = rows
        self._adapt = adapt

    def slices(self) -> list[slice]:
        """The rows of a concept's batch, in as many parts as this rung has them."""
        starts = range(0, self._rows, self._rows_at_once)
        return [slice(start, start + self._rows_at_once) for start in starts]

    def take(self, passes: Callable[[], Result]) -> Result:
        """Run the forward and backward passes of a step, again from their start on each rung.

        Raises:
            RuntimeError: torch's own, at the foot of the ladder.
        """
        while True:
            try:
                return passes()
            except RuntimeError as error:
                if not (self._adapt and _is_out_of_memory(error)) or not self._can_step_down():
                    raise
                needed = _needed(error)
            # Only here is the traceback gone, and with it the activations that it held.
            for parameter in self._trained.parameters():
                parameter.grad = None
            self._accelerator.step = 0  # of the passes since the last optimizer step
            clear_device_cache(garbage_collection=True)
            self._step_down(needed)

    def _can_step_down(self) -> bool:
        return not self._network.is_gradient_checkpointing or self._rows_at_once > 1

    def _step_down(self, needed: str) -> None:
        if not self._network.is_gradient_checkpointing:
            self._network.enable_gradient_checkpointing()
            cure = "with gradient checkpointing"
        else:
            self._rows_at_once = (self._rows_at_once + 1) // 2
            cure = f"with {self._rows_at_once} of a batch's {self._rows} rows at a time"
        logger.warning("Out of memory%s; going on %s.", needed, cure)


@contextmanager
def out_of_memory_in_one_sentence(config: Config) -> Iterator[None]:
    """Say what was needed and which flags need less.

    Raises:
        LoLDUError: in place of torch's error.
    """
    try:
        yield
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        raise LoLDUError(
            f"Out of memory{_needed(error)}; try {' or '.join(_cures(config))}."
        ) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _needed(error: RuntimeError) -> str:
    """What torch tells about it, as far as it does."""
    text = str(error)
    parts: list[str] = []
    if asked := re.search(r"ried to allocate (\d[\d.]* \w+)", text):
        size, unit = asked[1].split()
        gib = int(size) / 2**30 if unit == "bytes" else None
        parts.append(f"{asked[1] if gib is None else f'{gib:.2f} GiB'} more were asked for")
    if found := re.search(r"capacity of (\d[\d.]* \w+) of which (\d[\d.]* \w+) is free", text):
        parts.append(f"{found[2]} of {found[1]} were free")
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated() / 2**30
        parts.append(f"the most held so far was {peak:.2f} GiB")
    return f" ({', '.join(parts)})" if parts else ""


def _cures(config: Config) -> list[str]:
    optimization, performance = config.optimization, config.performance
    cures = []
    if performance.on_oom == "stop":
        cures.append("--on_oom adapt")
        if not performance.gradient_checkpointing:
            cures.append("--gradient_checkpointing")
        if optimization.train_batch_size > 1:
            cures.append("a smaller --train_batch_size with more --gradient_accumulation_steps")
    if optimization.mixed_precision == "no":
        cures.append("--mixed_precision bf16")
    return [*cures, "a smaller --resolution"]
