"""The device that something is measured on."""

import sys
import time
from collections.abc import Callable, Mapping

import torch


def named(device: str) -> str:
    """Return what the device calls itself, or end the command where there is none.

    Raises:
        SystemExit: It is a GPU that is not there.
    """
    if not device.startswith("cuda"):
        return device
    if not torch.cuda.is_available():
        sys.exit(f"--device {device}: PyTorch finds no GPU here; leave it out to measure the CPU.")
    return torch.cuda.get_device_name(device)


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Return how long a call takes until the device has done all of it."""
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def in_turns(calls: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds that every call tells in every repetition, by name.

    The calls take turns, and another one begins in every repetition, so that whatever else the
    machine does meets them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = [*calls]
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(calls[name]())
    return seconds


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
