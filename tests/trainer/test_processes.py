"""Several processes train what one does with their batches together."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import debug_launcher
from accelerate.state import AcceleratorState

from loldu import read_concept
from trainer.__main__ import run

ROOT = Path(__file__).resolve().parents[2]
PRIOR = ["--with_prior_preservation", "--class_prompt", "a toy", "--num_class_images", "3"]


def deltas(folder: Path) -> torch.Tensor:
    return torch.cat([layer.delta for layer in read_concept(folder / "concept.safetensors").layers])


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_same(folder: Path, expected: Path) -> None:
    """The same adapter, and the same losses, written once."""
    torch.testing.assert_close(deltas(folder), deltas(expected), rtol=1e-3, atol=1e-5)
    ours, theirs = metrics(folder), metrics(expected)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, other in zip(ours, theirs, strict=True):
        for key in ("loss", "instance_loss", "prior_loss", "lr", "delta_norm"):
            assert line[key] == pytest.approx(other[key], rel=1e-3), key


def _run(argv: Sequence[str]) -> None:
    AcceleratorState._reset_state(reset_partial_state=True)  # this is a fork of one process
    assert run(argv) == 0


@pytest.mark.parametrize(
    "more",
    [
        ["--ema_decay", "0.9"],
        ["--gradient_accumulation_steps", "2", "--logging_steps", "3"],
        ["--prior_target", "base", "--max_delta_norm", "0.05", "--gradient_checkpointing"],
    ],
    ids=["ema", "accumulation", "base"],
)
def test_two_processes_are_one_with_twice_the_batch(
    more: list[str], flags: list[str], tmp_path: Path
) -> None:
    two, one = tmp_path / "two", tmp_path / "one"
    common = [*flags, *PRIOR, *more, "--checkpointing_steps", "2", "--random_flip"]
    assert run([*common, "--train_batch_size", "4", "--output_dir", str(one)]) == 0
    debug_launcher(_run, ([*common, "--output_dir", str(two)],), num_processes=2)
    check_same(two, one)
    assert sorted(path.name for path in two.iterdir()) == sorted(
        path.name for path in one.iterdir()
    )


def launch(processes: int, argv: Sequence[str]) -> subprocess.CompletedProcess[str]:
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_machines", "1"]
    options = ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    script = [str(ROOT / "trainer" / "train_dreambooth_loldu.py"), *argv]
    return subprocess.run(
        [sys.executable, *launcher, *options, "--num_processes", str(processes), *script],
        env={**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_accelerate_launch(flags: list[str], tmp_path: Path) -> None:
    """The real command, with two processes and with one."""
    two, one = tmp_path / "two", tmp_path / "one"
    for processes, batch, folder in ((2, 2, two), (1, 4, one)):
        more = ["--train_batch_size", str(batch), "--output_dir", str(folder)]
        finished = launch(processes, [*flags, *PRIOR, *more])
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr.count("Saved ") == 1
    check_same(two, one)


@pytest.mark.slow
def test_the_ladder_is_for_one_process(flags: list[str]) -> None:
    finished = launch(2, [*flags, "--on_oom", "adapt"])
    assert finished.returncode != 0
    assert "--on_oom adapt works in one process; with several, give" in finished.stderr
