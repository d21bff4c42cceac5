"""Requests to a run while it trains."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from loldu import read_concept
from trainer.__main__ import run
from trainer.options.config import Config
from trainer.training import control as control_module
from trainer.training.control import Control, Request
from trainer.training.objective import Objective

ROOT = Path(__file__).resolve().parents[3]
MakeConfig = Callable[..., Config]
During = Callable[[int, Callable[[], object]], None]

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def heeded() -> Iterator[None]:
    """Enable Ctrl-C and SIGHUP, which a shell may ignore for processes in the background."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    hangup = signal.signal(signal.SIGHUP, signal.SIG_DFL) if sys.platform != "win32" else None
    yield
    signal.signal(signal.SIGINT, former)
    if sys.platform != "win32":
        signal.signal(signal.SIGHUP, hangup)


@pytest.fixture
def during(monkeypatch: pytest.MonkeyPatch) -> During:
    """Call a function in the middle of a step, counted from 1."""

    def arrange(step: int, happen: Callable[[], object]) -> None:
        draw = Objective.draw

        def draw_and_happen(self: Objective, pass_index: int, *shares: int) -> object:
            if pass_index == step - 1:
                happen()
            return draw(self, pass_index, *shares)

        monkeypatch.setattr(Objective, "draw", draw_and_happen)

    return arrange


def asking(output_dir: Path, name: str) -> Callable[[], object]:
    return lambda: (output_dir / "control" / name).touch()


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def names(output_dir: Path, pattern: str) -> list[str]:
    return sorted(path.name for path in output_dir.glob(pattern))


def deltas(path: Path) -> torch.Tensor:
    return torch.cat([layer.delta for layer in read_concept(path).layers])


@contextmanager
def process(flags: list[str]) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-m", "trainer", *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            running.kill()


def wait_for(running: subprocess.Popen[str], true: Callable[[], object]) -> None:
    while not true():
        assert running.poll() is None, running.communicate()[1]
        time.sleep(0.005)


@posix
def test_a_process_answers_files_and_signals(flags: list[str], output_dir: Path) -> None:
    """Send signals and files of every kind: some that do not end the run, then one that does."""
    control = output_dir / "control"
    control.mkdir(parents=True)
    (control / "stop").touch()  # to a run that is long over
    many = ["--max_train_steps", "1000000", "--checkpointing_steps", "0", "--logging_steps", "7"]
    with process([*flags, *many]) as running:
        metrics = output_dir / "metrics.jsonl"
        wait_for(running, lambda: metrics.exists() and metrics.read_text())
        assert not names(output_dir, "checkpoint-*")
        for number, ask in enumerate(
            (lambda: (control / "save").touch(), lambda: running.send_signal(signal.SIGUSR1))
        ):
            ask()
            wait_for(running, lambda n=number: len(names(output_dir, "checkpoint-*")) > n)
        for number, ask in enumerate(
            (lambda: (control / "sample").touch(), lambda: running.send_signal(signal.SIGUSR2))
        ):
            ask()
            wait_for(running, lambda n=number: len(names(output_dir, "validation/0*.png")) > n)
        assert not list(control.iterdir())
        running.send_signal(signal.SIGTERM)
        _, log = running.communicate()
    assert running.returncode == 130
    last = steps(metrics)[-1]
    assert names(output_dir, "checkpoint-*")[-1] == f"checkpoint-{last:06d}"
    assert f"Stopped after step {last}; --resume latest continues." in log
    assert "Stopping after this step, with a checkpoint" in log
    assert not (output_dir / "concept.safetensors").exists()
    assert not control.exists()
    line = r"step 7/1000000, loss \d\.\d{4}, lr 1\.0e-02, ‖delta_W‖ [\d.]+, peak [\d.]+ GiB, "
    assert re.search(rf"^{line}[\d.]+(it/s|s/it), [\d:]+ left$", log, re.MULTILINE)
    assert "\r" not in log


@pytest.mark.parametrize(
    "ask",
    ["stop", pytest.param("SIGINT", marks=posix), pytest.param("SIGHUP", marks=posix)],
)
def test_stopped_and_resumed_is_bit_identical(
    ask: str,
    flags: list[str],
    tmp_path: Path,
    output_dir: Path,
    during: During,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One run draws a picture on request, the other none."""
    flags = [*flags, "--max_train_steps", "5", "--lr_scheduler", "cosine", "--logging_steps", "5"]
    whole = tmp_path / "whole"
    assert run([*flags, "--output_dir", str(whole)]) == 0

    def happen() -> None:
        asking(output_dir, "sample")()
        if ask != "stop":
            signal.raise_signal(getattr(signal, ask))
        else:
            asking(output_dir, ask)()

    handler = signal.getsignal(signal.SIGINT)
    during(3, happen)
    capsys.readouterr()
    assert run(flags) == 130
    assert signal.getsignal(signal.SIGINT) is handler
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence == "Stopped after step 3; --resume latest continues."
    assert names(output_dir, "checkpoint-*") == ["checkpoint-000003"]
    assert names(output_dir, "validation/0*.png") == ["000003.png"]
    assert not (output_dir / "concept.safetensors").exists()
    assert run([*flags, "--resume", "latest"]) == 0
    assert torch.equal(
        deltas(whole / "concept.safetensors"), deltas(output_dir / "concept.safetensors")
    )
    assert steps(output_dir / "metrics.jsonl") == [3, 5]


def test_finish_saves_the_current_result(
    flags: list[str], output_dir: Path, during: During
) -> None:
    validation = ["--validation_prompt", "sks", "--validation_steps", "4"]
    during(2, asking(output_dir, "finish"))
    assert run([*flags, *validation]) == 0
    concept = read_concept(output_dir / "concept.safetensors")
    assert concept.metadata["steps"] == 2
    assert json.loads((output_dir / "summary.json").read_text())["train_steps"] == 2
    state = load_file(output_dir / "checkpoint-000002" / "trained.safetensors")
    assert any(name.endswith("dz") and tensor.any() for name, tensor in state.items())
    assert names(output_dir, "validation/0*.png") == ["000000.png", "000002.png"]


def test_a_stop_in_the_last_step_comes_too_late(
    flags: list[str], output_dir: Path, during: During
) -> None:
    during(4, asking(output_dir, "stop"))
    assert run(flags) == 0
    assert (output_dir / "concept.safetensors").exists()


def test_unknown_request_files_stay_and_are_logged_once(
    make_config: MakeConfig, output_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    control = Control(make_config().run, Accelerator(cpu=True))
    with control.listening():
        folder = output_dir / "control"
        (folder / "stopp").touch()
        (folder / ".stop.tmp").touch()  # somebody is writing it
        (folder / "save").mkdir()
        (folder / "finish").write_text("a person's own")
        assert [control.asked(step) for step in (1, 2)] == [Request(0)] * 2
        (folder / "sample").touch()
        assert control.asked(3) == Request.SAMPLE
        assert control.asked(4) == Request(0)
    assert names(folder, "*") == [".stop.tmp", "finish", "save", "stopp"]
    warned = [record.getMessage() for record in caplog.records]
    assert sorted(warned) == [
        f"{folder / name} is not a request; requests are empty files: save, sample, stop, finish."
        for name in ("finish", "stopp")
    ]


@posix
def test_a_second_signal_stops_at_once(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    clock = iter([10.0, 10.5, 12.0])  # the second is a launcher's, passing on the first
    monkeypatch.setattr(control_module.time, "monotonic", lambda: next(clock))
    control = Control(make_config().run, Accelerator(cpu=True))
    with control.listening():
        signal.raise_signal(signal.SIGINT)
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            pytest.fail("It counted as a second one.")
        assert control.asked(1) == Request.STOP
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert capfd.readouterr().err.count("once more stops at once") == 1


@posix
def test_a_closed_terminal_stops_with_a_checkpoint_however_often_it_signals(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([10.0, 20.0])
    monkeypatch.setattr(control_module.time, "monotonic", lambda: next(clock))

    def gone(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(control_module.os, "write", gone)
    control = Control(make_config().run, Accelerator(cpu=True))
    with control.listening():
        for _ in range(2):
            signal.raise_signal(signal.SIGHUP)
        assert control.asked(1) == Request.STOP
