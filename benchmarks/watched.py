"""How fast a command takes its steps, read off its own progress bar, and the memory it takes.

The command is run as it is, in a process of its own. `python -m benchmarks.watched SAMPLES TARGET
...` is that process: it runs a script (by its path) or a module as Python would, and notes the most
memory held so far whenever there is more.
"""

import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.memory import mib
from trainer.records import peak_memory_mib

ROOT = Path(__file__).resolve().parents[1]
SAMPLING_S = 0.02


@dataclass(frozen=True)
class Command:
    """What is run.

    Attributes:
        what: In words.
        target: A module, or a script's path.
        arguments: Of its command line.
        bar: What its progress bar says before the numbers.
    """

    what: str
    target: str
    arguments: list[str]
    bar: str


@dataclass(frozen=True)
class Watched:
    """What was seen.

    Attributes:
        what: The command in words.
        seconds_per_step: Between the end of the last warm-up step and the end of the last step.
        peak_mib: The most memory held until the last step was done.
    """

    what: str
    seconds_per_step: float
    peak_mib: dict[str, float]


def watch(command: Command, steps: int, warmup: int) -> Watched:
    """Run a command of so many steps, of which the first are not timed.

    Raises:
        SystemExit: It failed, or showed no steps; told with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        done, said = _run(command, steps, samples)
        if not {warmup, steps} <= done.keys():
            last = said.strip().splitlines()[-1:] or ["nothing"]
            sys.exit(f"{command.what} did not take {steps} steps; it said last: {last[0]}")
        peaks = [json.loads(line) for line in samples.read_text().splitlines()]
    until = [sample["peak_mib"] for sample in peaks if sample["at"] <= done[steps]]
    spent = (done[steps] - done[warmup]) / (steps - warmup)
    return Watched(command.what, spent, until[-1])


def _run(command: Command, steps: int, samples: Path) -> tuple[dict[int, float], str]:
    """Return when each step was first shown to be done, and all that was said."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "benchmarks.watched", str(samples)),
            *(command.target, *command.arguments),
        ],
        cwd=ROOT,
        env={**os.environ, "TQDM_MININTERVAL": "0", "TQDM_MINITERS": "1"},  # every step is shown
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdout is not None
    bar = re.compile(rf"{re.escape(command.bar)}: .*?(\d+)/{steps} \[")
    done: dict[int, float] = {}
    said, line = "", ""
    while chunk := os.read(process.stdout.fileno(), 2**16):
        now = time.monotonic()
        text = chunk.decode(errors="replace")
        said += text
        *lines, line = re.split(r"[\r\n]", line + text)
        for shown in (*lines, line):
            if found := bar.search(shown):
                done.setdefault(int(found[1]), now)
    if process.wait():
        done.clear()
    return done, said


def peaks() -> dict[str, float]:
    """Return the most memory this process has held so far: of the GPU where there is one."""
    if not torch.cuda.is_available():
        return {"resident": float(f"{peak_memory_mib():.5g}")}
    return {
        "allocated": mib(torch.cuda.max_memory_allocated()),
        "reserved": mib(torch.cuda.max_memory_reserved()),
    }


def _sample(path: Path) -> None:
    last: dict[str, float] = {}
    with path.open("w", encoding="utf-8", buffering=1) as file:
        while True:
            if (now := peaks()) != last:
                file.write(json.dumps({"at": time.monotonic(), "peak_mib": now}) + "\n")
                last = now
            time.sleep(SAMPLING_S)


def main(argv: Sequence[str]) -> None:
    """Run the target under this process's eyes."""
    samples, target, *arguments = argv
    threading.Thread(target=_sample, args=(Path(samples),), daemon=True).start()
    sys.argv = [target, *arguments]
    if target.endswith(".py"):
        sys.path.insert(0, str(Path(target).resolve().parent))
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
