"""Peak memory of one training among others in a process; `trainer.training.memory` tells it."""

import contextlib
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")


def forget_peak_memory() -> None:
    """Count the peak from here on, where the system can."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        with contextlib.suppress(OSError):  # not every container may
            _CLEAR.write_text("5")
