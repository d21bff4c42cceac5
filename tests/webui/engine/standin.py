"""Stands in for the trainer: its files and its control folder, in no time and without torch.

Its prompt says what it does; as a script it is the command of a training.
"""

import json
import os
import sys
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path

from webui.engine.job import Kind
from webui.engine.process import main

STEP_S = 0.01


def train(flags: Sequence[str]) -> tuple[int, str]:
    options = tomllib.loads(Path(flags[flags.index("--preset") + 1]).read_text())
    folder = Path(flags[flags.index("--output_dir") + 1])
    prompt = options["instance"]["instance_prompt"]
    with (folder / "starts.txt").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    (folder / "environment.json").write_text(json.dumps(dict(os.environ)))
    if prompt == "fails":
        return 2, "--instance_data_dir pictures is empty: put 3-5 pictures there."
    if prompt == "breaks":
        raise RuntimeError("no kernel\nand much more")
    wait_for(folder / "loaded", prompt == "loads")
    done = max((int(path.name[11:]) for path in folder.glob("checkpoint-*")), default=0)
    (folder / "config.toml").touch()
    control = folder / "control"
    control.mkdir()
    for step in range(done + 1, options["optimization"]["max_train_steps"] + 1):
        time.sleep(STEP_S)
        with (folder / "metrics.jsonl").open("a") as metrics:
            line = {"step": step, "loss": 1 / step, "seconds": step / 4, "peak_memory_mib": 64.0}
            metrics.write(json.dumps(line) + "\n")
        asked = set() if prompt == "deaf" else {path.name for path in control.iterdir()}
        for name in asked:
            (control / name).unlink()
        if asked & {"save", "stop"}:
            (folder / f"checkpoint-{step:06d}").mkdir()
            (folder / f"checkpoint-{step:06d}" / "state.json").touch()
        if "sample" in asked:
            (folder / "validation" / "pictures").mkdir(parents=True, exist_ok=True)
            (folder / "validation" / "pictures" / f"{step:06d}-00.png").touch()
        if "stop" in asked:
            control.rmdir()
            return 130, ""
        if "finish" in asked:
            break
    for request in control.iterdir():
        request.unlink()
    control.rmdir()
    wait_for(folder / "written", prompt == "writes")
    (folder / "README.md").touch()
    wait_for(folder / "pushed", prompt == "pushes")
    return 0, ""


def score(flags: Sequence[str]) -> tuple[int, str]:
    options = tomllib.loads(Path(flags[flags.index("--preset") + 1]).read_text())
    folder = Path(flags[flags.index("--output_dir") + 1])
    with (folder / "starts.txt").open("a") as starts:
        starts.write(f"{os.getpid()}\n")
    pictures = folder / "pictures" / "base" / "concept"
    pictures.mkdir(parents=True, exist_ok=True)
    (pictures / "000-0.png").touch()
    if options["prompts"] == ["fails"]:
        return 2, "--prompts is wrong: give others."
    wait_for(folder / "drawn", options["prompts"] == ["draws"])
    (folder / "report.png").touch()
    wait_for(folder / "told", options["prompts"] == ["tells"])
    return 0, ""


def wait_for(path: Path, waits: bool) -> None:
    while waits and not path.exists():
        time.sleep(STEP_S)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], {Kind.TRAIN: train, Kind.SCORE: score}))
