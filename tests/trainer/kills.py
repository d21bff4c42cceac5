"""Run a training in a process that kills itself, and compare what runs leave behind."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
from accelerate.state import AcceleratorState

from eval.protocols.live import Pictures
from trainer.options.preset import parse
from trainer.train_dreambooth_loldu import main

CALLS = ("replace", "rename", "unlink", "rmdir", "mkdir", "fsync")
TIMES = {"metrics.jsonl", "summary.json", "state.json", "README.md"}
"""Files that hold seconds and memory."""
Point = Callable[[str, str], bool]


def never(name: str, about: str) -> bool:
    return False


class Brightness:
    """Scores that depend on the pictures alone, and grow from step to step."""

    def score(self, pictures: Pictures) -> dict[str, float]:
        change = np.asarray(pictures.concept[0], float) - np.asarray(pictures.base[0], float)
        bright = float(np.abs(change).mean())
        return {"dino": bright, "clip_i": bright, "clip_t": bright, "drift": bright}


def start(flags: list[str], die: Point) -> tuple[int, list[tuple[str, str]]]:
    """Train in a process of its own, which kills itself before the call that `die` chooses.

    Returns the exit status, and the calls that change the disk.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(reader)

        def watched(name: str, call: Callable[..., object]) -> Callable[..., object]:
            def calling(*args: object, **kwargs: object) -> object:
                about = " ".join(str(arg) for arg in args)
                os.write(writer, f"{name} {about}\n".encode())
                if die(name, about):
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **kwargs)

            return calling

        for name in CALLS:
            setattr(os, name, watched(name, getattr(os, name)))
        try:
            AcceleratorState._reset_state(reset_partial_state=True)
            main(parse(flags), Brightness())
            os._exit(0)
        except BaseException as error:
            os.write(2, f"{error!r}\n".encode())
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as calls:
        made = [(*line.split(" ", 1), "")[:2] for line in calls.read().splitlines()]
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), made


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file and folder of a run but the manifest, which names files in any order."""
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        comparable = path.is_file() and path.name not in TIMES and ".loldu/" not in name
        content = path.read_bytes() if comparable else b""
        found[name] = content.replace(str(folder).encode(), b"FOLDER")
    return found


def differences(folder: Path, whole: Path) -> list[str]:
    """Return the names of files that one run has and the other lacks, or whose content differs."""
    ours, theirs = contents(folder), contents(whole)
    assert "concept.safetensors" in theirs
    return sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))


def check_twenty_kills(flags: list[str], folder: Path) -> None:
    """Kill a run at twenty moments of its life, resume each, and compare it with a whole run."""
    whole = folder / "whole"
    status, calls = start([*flags, "--output_dir", str(whole)], never)
    assert status == 0
    for number in range(20):
        killed, left = folder / str(number), len(calls) * (2 * number + 1) // 40

        def die(*_: str) -> bool:
            nonlocal left
            left -= 1
            return left < 0

        again = [*flags, "--output_dir", str(killed), "--resume", "latest"]
        assert start(again, die)[0] == -signal.SIGKILL
        assert start(again, never)[0] == 0
        assert differences(killed, whole) == [], calls[len(calls) * (2 * number + 1) // 40]
