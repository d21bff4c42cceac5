"""Profile of a training step: kernels by time, launches, and waits of the host."""

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from rich.table import Table
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, supported_activities

from benchmarks.harness import digits, profiled, show

LAUNCHES = ("cudaLaunch", "cuLaunch", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def kernels(take: Callable[[int], object], steps: int) -> dict[str, Any]:
    """Return the 25 most expensive kernels of a step, of the GPU if there is one.

    Calls are counted as the difference between twice the steps and the steps, so that work before
    the first step or after the last is not counted. Launches are those of kernels, graphs and
    copies. A wait is a call that blocks the host until the GPU has finished.

    Args:
        take: Takes a number of steps.
        steps: Number of steps.
    """
    take(1)
    _, once = _totals(take, steps)
    spent, twice = _totals(take, 2 * steps)
    ms = {name: digits(total / (2 * steps)) for name, total in spent.items()}
    calls = {name: digits((total - once[name]) / steps) for name, total in twice.items()}

    def count(names: tuple[str, ...]) -> float | None:
        if not _on_gpu():
            return None
        return sum(number for name, number in calls.items() if name.startswith(names))

    return {
        "steps": steps,
        "ms_per_step": digits(sum(spent.values()) / (2 * steps)),
        "launches_per_step": count(LAUNCHES),
        "host_waits_per_step": count(WAITS),
        "kernels": [
            {"name": name[:120], "ms_per_step": ms[name], "calls_per_step": calls[name]}
            for name in sorted(ms, key=ms.__getitem__, reverse=True)[:25]
        ],
    }


def _totals(take: Callable[[int], object], steps: int) -> tuple[dict[str, float], Counter[str]]:
    """Return milliseconds by kernel, and numbers of all calls."""
    ms: defaultdict[str, float] = defaultdict(float)
    calls: Counter[str] = Counter()
    for event in profiled(lambda: take(steps)).key_averages():
        calls[event.key] += event.count
        if not _on_gpu():
            ms[event.key] += event.self_cpu_time_total / 1000
        elif event.device_type == DeviceType.CUDA and not event.is_user_annotation:
            ms[event.key] += event.self_device_time_total / 1000
    return ms, calls


def _on_gpu() -> bool:
    return ProfilerActivity.CUDA in supported_activities()


def table(result: dict[str, Any]) -> Table:
    """Return the table of the kernels."""
    title = f"a step: {result['ms_per_step']:.4g} ms in kernels"
    if result["launches_per_step"] is not None:
        launches, waits = result["launches_per_step"], result["host_waits_per_step"]
        title += f", {launches:.4g} launches, {waits:.3g} waits of the host"
    rows = [
        {
            "kernel": kernel["name"][:70],
            "ms": kernel["ms_per_step"],
            "calls": kernel["calls_per_step"],
        }
        for kernel in result["kernels"]
    ]
    return show(title, rows)
