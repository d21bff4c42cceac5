"""Memory: measure the peak, explain an out-of-memory error, or go on with less at once."""

import logging
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache
from diffusers import ModelMixin

from loldu.errors import LoLDUError
from trainer.methods.trained import Trained
from trainer.options.config import Config

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_STATUS = Path("/proc/self/status")
"""Has the process's own peak on Linux; there, ru_maxrss can be the peak of a larger parent."""


def peak_memory_mib() -> float:
    """Return the peak memory so far: of the GPU if there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if _STATUS.is_file() and (most := re.search(rb"VmHWM:\s*(\d+) kB", _STATUS.read_bytes())):
        return int(most[1]) / 2**10
    if sys.platform == "win32":  # has no such record
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


class MemoryLadder:
    """Goes down a rung each time the passes of a step need too much memory, and stays there.

    The rungs: the options as given; gradient checkpointing; half the rows of a batch at a time, a
    quarter, down to one. Batches and losses are the same on every rung, so training changes by
    rounding only. A resumed run starts at the top again. It works in one process only: of several,
    those with enough memory would wait forever for the gradients of the one without.
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
        """Start at the top, with `rows` rows per concept; without `adapt`, stay there."""
        self._network, self._trained, self._accelerator = network, trained, accelerator
        self._rows = self._rows_at_once = rows
        self._adapt = adapt

    def slices(self) -> list[slice]:
        """Return the parts of a concept's batch that this rung computes one after the other."""
        starts = range(0, self._rows, self._rows_at_once)
        return [slice(start, start + self._rows_at_once) for start in starts]

    def take(self, passes: Callable[[], Result]) -> Result:
        """Run the forward and backward passes of a step; start them again on each lower rung.

        Raises:
            RuntimeError: If even the lowest rung needs too much memory; torch's own error.
        """
        while True:
            try:
                return passes()
            except RuntimeError as error:
                if not (self._adapt and is_out_of_memory(error)) or not self._can_step_down():
                    raise
                needed = _needed(error)
            # Only here is the traceback gone, which kept the activations in memory.
            for parameter in self._trained.parameters():
                parameter.grad = None
            self._accelerator.step = 0  # passes since the last optimizer step
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
    """Report an out-of-memory error with the memory that was needed and flags that need less.

    Raises:
        LoLDUError: If torch runs out of memory.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise LoLDUError(
            f"Out of memory{_needed(error)}; try {' or '.join(_cures(config))}."
        ) from error


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether an error of torch says that the memory is too small."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _needed(error: RuntimeError) -> str:
    """Return the numbers in torch's message, in parentheses, or ""."""
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
