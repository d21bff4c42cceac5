"""Progress of a run, read from its folder while the run writes it."""

import json
import os
import re
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from trainer.training.stages import Stage, last_stage
from webui.engine.options import max_train_steps
from webui.engine.process import LOG

# The names in docs/train-reference.md and docs/eval.md; importing the modules takes seconds.
CONTROL, CONFIG, CARD, CONCEPTS = "control", "config.toml", "README.md", "concepts"
REPORT = "report.png"
_METRICS, _SCORES, _PICTURES = "metrics.jsonl", "validation.jsonl", "validation/pictures"
_RATE_LINES = 10
_TAIL_BYTES = 4096
_LARGEST = 2**53
"""Numbers below it are exact as floats, and a browser can show them."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run; None for values that are not known yet.

    Attributes:
        step: Last step in the metrics.
        steps: Number of steps.
        losses: Steps and their losses.
        scores: Scores by step.
        steps_per_s: Speed over the last lines of the metrics.
        seconds_left: Time left at this speed.
        memory_mib: Peak memory.
        base_pictures: The base's pictures, one per validation prompt.
        pictures: The concept's validation pictures, by step.
        checkpoints: Folders of the checkpoints, by step.
        stage: Stage of the run before its first step, or None.
        last_line: Last line of the log.
    """

    step: int
    steps: int
    losses: tuple[tuple[int, float], ...]
    scores: Mapping[int, Mapping[str, float]]
    steps_per_s: float | None
    seconds_left: float | None
    memory_mib: float | None
    base_pictures: tuple[Path, ...]
    pictures: Mapping[int, tuple[Path, ...]]
    checkpoints: Mapping[int, Path]
    stage: Stage | None
    last_line: str


class RunReader:
    """Reads the folder of a run repeatedly; of the metrics file it reads only new lines."""

    def __init__(self, folder: Path) -> None:
        """Prepare to read a folder that may still be empty."""
        self._folder = folder
        self._steps = max_train_steps(folder)
        self._lines: list[dict[str, int | float]] = []
        self._inode = 0  # a resumed run replaces the file
        self._offset = 0
        self._reading = threading.Lock()

    def read(self) -> Progress:
        """Return the current progress."""
        with self._reading:
            self._read_metrics()
            lines = self._lines
            step = int(lines[-1]["step"]) if lines else 0
            rate = self._rate()
            base, pictures = self._pictures()
            tail = self._tail()
            return Progress(
                step=step,
                steps=self._steps,
                losses=tuple((int(line["step"]), line["loss"]) for line in lines if "loss" in line),
                scores=self._scores(),
                steps_per_s=rate,
                seconds_left=(self._steps - step) / rate if rate else None,
                memory_mib=(lines[-1].get("peak_memory_mib") or None) if lines else None,
                base_pictures=base,
                pictures=pictures,
                checkpoints=checkpoints(self._folder),
                stage=last_stage(tail),
                last_line=tail[-1] if tail else "",
            )

    def _read_metrics(self) -> None:
        try:
            with (self._folder / _METRICS).open("rb") as file:
                state = os.fstat(file.fileno())
                if state.st_ino != self._inode or state.st_size < self._offset:
                    self._lines, self._offset, self._inode = [], 0, state.st_ino
                file.seek(self._offset)
                new = file.read()
        except OSError:
            return
        whole = new[: new.rfind(b"\n") + 1]  # the last line may be incomplete
        self._offset += len(whole)
        self._lines += _json_lines(whole)

    def _rate(self) -> float | None:
        """Return steps per second; the first line counts from the start of the run."""
        window = [line for line in self._lines[-_RATE_LINES:] if "seconds" in line]
        if not window:
            return None
        last, first = window[-1], window[0] if len(window) > 1 else {"step": 0, "seconds": 0.0}
        seconds = last["seconds"] - first["seconds"]
        return (last["step"] - first["step"]) / seconds if seconds > 0 else None

    def _scores(self) -> dict[int, dict[str, float]]:
        try:
            text = (self._folder / _SCORES).read_bytes()
        except OSError:
            return {}
        return {int(line.pop("step")): line for line in _json_lines(text)}

    def _pictures(self) -> tuple[tuple[Path, ...], dict[int, tuple[Path, ...]]]:
        """Return the base's pictures, and the concept's by step, in the order of the prompts."""
        found: dict[str, list[Path]] = {}
        for path in sorted((self._folder / _PICTURES).glob("*.png")):
            if match := re.fullmatch(r"(base|\d+)-\d+", path.stem):  # skips temporary files
                found.setdefault(match[1], []).append(path)
        base = tuple(found.pop("base", ()))
        return base, {int(step): tuple(paths) for step, paths in found.items()}

    def _tail(self) -> list[str]:
        """Return the last lines of the log."""
        try:
            with (self._folder / LOG).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
                tail = file.read().decode(errors="replace")
        except OSError:
            return []
        # Progress bars overwrite their lines.
        return [line.strip() for line in re.split(r"[\r\n]", tail) if line.strip()]


def checkpoints(folder: Path) -> dict[int, Path]:
    """Return the complete checkpoints of a run by step, oldest first."""
    found: dict[int, Path] = {}
    for state in sorted(folder.glob("checkpoint-*/state.json")):
        if match := re.fullmatch(r"checkpoint-(\d+)", state.parent.name):
            found[int(match[1])] = state.parent
    return found


def _json_lines(text: bytes) -> list[dict[str, int | float]]:
    """Return the numbers of each line of a JSON-lines file that has a step.

    Lines that a kill has cut short are left out, and so are values that no chart can show: nan,
    infinity, huge numbers and other types.
    """
    lines: list[dict[str, int | float]] = []
    for line in text.splitlines():
        with suppress(ValueError, RecursionError, AttributeError):
            lines.append({name: value for name, value in json.loads(line).items() if _shows(value)})
    return [line for line in lines if type(line.get("step")) is int]


def _shows(value: object) -> bool:
    return isinstance(value, int | float) and abs(value) < _LARGEST
