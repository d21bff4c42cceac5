"""Speed of a command, read from its progress bar, and its memory.

The command runs unchanged in its own process: see `benchmarks.sampling`.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import mib

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Command:
    """A command to watch.

    Attributes:
        what: Description.
        target: Module, or path of a script.
        arguments: Command line, without the program.
        bar: Label of its progress bar.
    """

    what: str
    target: str
    arguments: list[str]
    bar: str


@dataclass(frozen=True)
class Watched:
    """Speed and memory of a command.

    Attributes:
        what: Description of the command.
        seconds_per_step: Mean from the end of the last warm-up step to the end of the last step.
        peak_mib: Most memory held until the end of the last step.
    """

    what: str
    seconds_per_step: float
    peak_mib: dict[str, float]


def watch(command: Command, steps: int, warmup: int) -> Watched:
    """Run a command and time its steps after the warm-up.

    Raises:
        SystemExit: If it failed or showed no steps; with its last line.
    """
    with tempfile.TemporaryDirectory() as folder:
        samples = Path(folder) / "samples.jsonl"
        done, said = _run(command, steps, samples)
        if not {warmup, steps} <= done.keys():
            last = said.strip().splitlines()[-1:] or ["nothing"]
            sys.exit(f"{command.what} did not take {steps} steps; it said last: {last[0]}")
        taken = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    until = [sample["peak_bytes"] for sample in taken if sample["at"] <= done[steps]]
    peak = {kind: mib(count) for kind, count in until[-1].items()}
    return Watched(command.what, (done[steps] - done[warmup]) / (steps - warmup), peak)


def _run(command: Command, steps: int, samples: Path) -> tuple[dict[int, float], str]:
    """Return the time at which the bar first showed each step, and the whole output."""
    target = [command.target, *command.arguments]
    done: dict[int, float] = {}
    said = line = ""
    bar = re.compile(rf"{re.escape(command.bar)}: .*?(\d+)/{steps} \[")
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.sampling", str(samples), *target],
        cwd=ROOT,
        env={**os.environ, "TQDM_MININTERVAL": "0", "TQDM_MINITERS": "1"},  # show every step
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        while chunk := os.read(process.stdout.fileno(), 2**16):
            now, text = time.monotonic(), chunk.decode(errors="replace")
            said += text
            *lines, line = re.split(r"[\r\n]", line + text)
            for found in filter(None, map(bar.search, (*lines, line))):
                done.setdefault(int(found[1]), now)
    return ({} if process.returncode else done), said
