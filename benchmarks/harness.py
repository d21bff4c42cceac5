"""The harness of all benchmarks: time calls in turns, pair repetitions, write and show the record.

A benchmark is a dataclass of options, a function that measures, and the rows of its tables.
"""

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal, TypeVar

import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch.profiler import profile

from loldu.errors import LoLDUError
from loldu.provenance import provenance, write_record

RESULTS = Path(__file__).parent / "results"
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "accelerate")
MIB = 2**20

Dtype = Literal["float32", "float16", "bfloat16"]


@dataclass(frozen=True)
class Options:
    """Options of every benchmark."""

    # How many times everything is timed; the result holds medians.
    repetitions: int = 7
    # Seed of the random weights and inputs.
    seed: int = 0
    # Device to measure on: cpu or cuda.
    device: str = "cpu"
    # File of the result, which is replaced; benchmarks/results/NAME.json unless given.
    output: Path | None = None


@dataclass(frozen=True)
class UNetOptions(Options):
    """Options of benchmarks on a U-Net with random weights."""

    # Widths of the U-Net's four stages; by default those of Stable Diffusion v1.5.
    block_out_channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    # Width of the text features; by default that of Stable Diffusion v1.5.
    cross_attention_dim: int = 768


@dataclass(frozen=True)
class StepOptions(UNetOptions):
    """Options of benchmarks that time a training step of the U-Net."""

    # Side of the U-Net's latents, 64 for pictures of 512 pixels; by default 64 on a GPU, 16 on a
    # CPU.
    latent_size: int | None = None
    # Dtype of the base, and of autocast unless float32; trained numbers stay in float32. The
    # trainer needs a GPU for float16.
    dtype: Dtype = "float32"

    @property
    def side(self) -> int:
        """Side of the latents."""
        return self.latent_size or (64 if self.device.startswith("cuda") else 16)


AnyOptions = TypeVar("AnyOptions", bound=Options)


def run(
    name: str,
    options_type: type[AnyOptions],
    measure: Callable[[AnyOptions], dict[str, Any]],
    tables: Callable[[dict[str, Any]], Iterable[Table]],
    argv: Sequence[str] | None = None,
    *,
    libraries: Sequence[str] = (),
) -> None:
    """Run a benchmark: parse the options, measure, write the JSON and show the tables.

    Args:
        name: Name of the module, and of the result file.
        options_type: Dataclass of the options.
        measure: Returns the benchmark's part of the record. Its keys win over the options'.
        tables: Make the tables of a record.
        argv: Command line, without the program; by default that of the process.
        libraries: Libraries whose versions the record states, besides `LIBRARIES`.

    Raises:
        SystemExit: If the options cannot work or nothing was measured; with the reason.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = tyro.cli(
        options_type, args=arguments, prog=f"python -m benchmarks.{name}", use_underscores=True
    )
    device = device_name(options.device)
    try:
        measured = measure(options)
    except LoLDUError as error:
        sys.exit(str(error))
    chosen = {key: value for key, value in asdict(options).items() if key != "output"}
    record = {
        **provenance(f"benchmarks.{name}", arguments, [*LIBRARIES, *libraries]),
        **{key: str(value) if isinstance(value, Path) else value for key, value in chosen.items()},
        "device": device,
        **measured,
    }
    write_record(options.output or RESULTS / f"{name}.json", record)
    Console(stderr=True).print(*tables(record))


def device_name(device: str) -> str:
    """Return the name of a device, such as the GPU's model.

    Raises:
        SystemExit: If the device is a GPU and there is none.
    """
    if not device.startswith("cuda"):
        return device
    if not torch.cuda.is_available():
        sys.exit(f"--device {device}: PyTorch finds no GPU here; leave it out to measure the CPU.")
    return torch.cuda.get_device_name(device)


def seconds_of(call: Callable[[], object], device: str) -> float:
    """Return the seconds until the device has finished a call."""
    _wait(device)
    started = time.perf_counter()
    call()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def in_turns(calls: Mapping[str, Callable[[], float]], repetitions: int) -> dict[str, list[float]]:
    """Return the seconds that each call reports in each repetition.

    The calls take turns and a different one goes first in each repetition, so that other load on
    the machine affects all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = [*calls]
    for repetition in range(repetitions):
        first = repetition % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(calls[name]())
    return seconds


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return median, minimum and maximum, to four digits.

    Raises:
        SystemExit: If there are no values.
    """
    ordered = sorted(values)
    if not ordered:
        sys.exit("Nothing was timed: give every --repetitions a number of at least 1.")
    return {
        "median": digits(median(ordered)),
        "min": digits(ordered[0]),
        "max": digits(ordered[-1]),
    }


def ratio(times: Sequence[float], to: Sequence[float]) -> dict[str, float]:
    """Return the spread of the quotients, each taken within one repetition."""
    return spread(a / b for a, b in zip(times, to, strict=True))


def compare(
    results: Mapping[str, dict[str, Any]],
    seconds: Mapping[str, Sequence[float]],
    memory: str,
    others: Sequence[str],
) -> None:
    """Add to each result how its time and memory compare with those of other methods.

    Args:
        results: Results by method.
        seconds: Seconds of each method in each repetition.
        memory: Key of the memory in a result. The quotient is None if the other one holds nothing.
        others: Methods to compare with.
    """
    for name, result in results.items():
        result["times_as_long_as"] = {o: ratio(seconds[name], seconds[o]) for o in others}
        held = {other: results[other][memory] for other in others}
        result["times_the_memory_of"] = {
            other: digits(result[memory] / of_other) if of_other else None
            for other, of_other in held.items()
        }


def digits(value: float) -> float:
    """Round to four digits."""
    return float(f"{value:.4g}")


def mib(count: int) -> float:
    """Return bytes as MiB, to five digits."""
    return float(f"{count / MIB:.5g}")


def peak_bytes(device: str, step: Callable[[], object]) -> int:
    """Return the most memory that PyTorch holds during a step, beyond what it held before.

    On a CPU every allocation of PyTorch is followed; oneDNN's own allocations are not.
    """
    step()  # Libraries allocate their workspaces in the first step.
    if not device.startswith("cuda"):
        return _peak_of_allocations(step)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def profiled(call: Callable[[], object], *, profile_memory: bool = False) -> profile:
    """Return the profile of a call."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # otherwise it writes to stderr
    with profile(profile_memory=profile_memory) as profiler:
        call()
    return profiler


def _peak_of_allocations(step: Callable[[], object]) -> int:
    profiler = profiled(step, profile_memory=True).profiler
    assert profiler is not None
    results: Any = profiler.kineto_results  # the stubs lack `nbytes` of its events
    changes = [(e.start_ns(), e.nbytes()) for e in results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda at: at[0]):
        held += change
        peak = max(peak, held)
    return peak


def show(title: str, rows: Sequence[Mapping[str, object]], caption: str | None = None) -> Table:
    """Return a table for the terminal: a column for each key, numbers to four digits."""
    made = Table(title=title, caption=caption)
    for index, heading in enumerate(rows[0]):
        made.add_column(heading, justify="right" if index else "left", no_wrap=not index)
    for row in rows:
        made.add_row(*(f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()))
    return made
