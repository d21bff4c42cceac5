"""How fast a command takes its steps, read off its own progress bar, and the memory it takes.

The command is run as it is, in a process of its own: see `benchmarks.sampling`.
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

from benchmarks.memory import mib

ROOT = Path(__file__).resolve().parents[1]


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
        taken = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
    until = [sample["peak_bytes"] for sample in taken if sample["at"] <= done[steps]]
    peak = {kind: mib(count) for kind, count in until[-1].items()}
    return Watched(command.what, (done[steps] - done[warmup]) / (steps - warmup), peak)


def _run(command: Command, steps: int, samples: Path) -> tuple[dict[int, float], str]:
    """Return when each step was first shown to be done, and all that was said."""
    target = [command.target, *command.arguments]
    done: dict[int, float] = {}
    said = line = ""
    bar = re.compile(rf"{re.escape(command.bar)}: .*?(\d+)/{steps} \[")
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.sampling", str(samples), *target],
        cwd=ROOT,
        env={**os.environ, "TQDM_MININTERVAL": "0", "TQDM_MINITERS": "1"},  # every step is shown
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
