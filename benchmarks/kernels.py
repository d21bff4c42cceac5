"""Where the time of a step goes: kernels by time, launches, and waits of the host."""

from collections.abc import Callable
from typing import Any

from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities

LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


def kernels(step: Callable[[], object], steps: int, *, shown: int = 25) -> dict[str, Any]:
    """Return what a step launches: the most expensive kernels, of the GPU where there is one.

    Launches are those of kernels, graphs and copies. A wait is a call that blocks the host until
    the GPU is done; the profiler's own, at the end, is taken off.
    """
    step()
    on_gpu = ProfilerActivity.CUDA in supported_activities()
    with profile() as profiler:
        for _ in range(steps):
            step()
    events = profiler.key_averages()
    gpu = [event for event in events if event.device_type == DeviceType.CUDA]
    timed = [
        (event.key, event.self_device_time_total if on_gpu else event.self_cpu_time_total, event)
        for event in (gpu if on_gpu else events)
    ]
    timed.sort(key=lambda each: each[1], reverse=True)

    def calls(names: tuple[str, ...]) -> int:
        return sum(event.count for event in events if event.key.startswith(names))

    return {
        "steps": steps,
        "ms_per_step": _per_step(sum(spent for _, spent, _ in timed) / 1000, steps),
        "launches_per_step": _per_step(calls(LAUNCHES), steps) if on_gpu else None,
        "host_waits_per_step": _per_step(max(0, calls(WAITS) - 1), steps) if on_gpu else None,
        "kernels": [
            {
                "name": name[:120],
                "ms_per_step": _per_step(spent / 1000, steps),
                "calls_per_step": _per_step(event.count, steps),
            }
            for name, spent, event in timed[:shown]
        ],
    }


def table(result: dict[str, Any]) -> Table:
    """Return the kernels for a person."""
    made = Table("kernel", title=f"a step: {_summary(result)}")
    made.add_column("ms", justify="right")
    made.add_column("calls", justify="right")
    for kernel in result["kernels"]:
        row = kernel["name"][:70], kernel["ms_per_step"], kernel["calls_per_step"]
        made.add_row(row[0], f"{row[1]:.3f}", f"{row[2]:.4g}")
    return made


def _summary(result: dict[str, Any]) -> str:
    summary = f"{result['ms_per_step']:.4g} ms in kernels"
    if result["launches_per_step"] is None:
        return summary
    launches, waits = result["launches_per_step"], result["host_waits_per_step"]
    return f"{summary}, {launches:.4g} launches, {waits:.3g} waits of the host"


def _per_step(total: float, steps: int) -> float:
    return float(f"{total / steps:.4g}")
