"""Reset peak memory, so that `trainer.training.memory` measures one training of several."""

import contextlib
from pathlib import Path

import torch

_CLEAR = Path("/proc/self/clear_refs")


def forget_peak_memory() -> None:
    """Restart the count of peak memory, if the system supports it."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    elif _CLEAR.exists():
        with contextlib.suppress(OSError):  # some containers forbid it
            _CLEAR.write_bytes(b"5")
