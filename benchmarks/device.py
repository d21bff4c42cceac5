"""The device that something is measured on."""

import sys
import time
from collections.abc import Callable

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


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
