"""The memory of a training step."""

from collections.abc import Callable
from typing import Any

import torch

from benchmarks.kernels import profiled

MIB = 2**20


def mib(count: int) -> float:
    """Return bytes as MiB, to five digits."""
    return float(f"{count / MIB:.5g}")


def peak_bytes(device: str, step: Callable[[], object]) -> int:
    """Return the most memory that PyTorch holds during a step, beside what it held before it.

    On a CPU every allocation is followed; what oneDNN takes for itself is not among them.
    """
    step()  # Libraries take their workspaces in the first.
    if not device.startswith("cuda"):
        return _peak_of_allocations(step)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def _peak_of_allocations(step: Callable[[], object]) -> int:
    profiler = profiled(step, profile_memory=True).profiler
    assert profiler is not None
    results: Any = profiler.kineto_results  # its events lack `nbytes` in the stubs
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda at: at[0]):
        held += change
        peak = max(peak, held)
    return peak
