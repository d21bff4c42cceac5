"""Several processes train what one does with their batches together."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator, debug_launcher
from accelerate.state import AcceleratorState

from loldu import read_concept
from loldu.errors import LoLDUError
from trainer.__main__ import run
from trainer.options.config import Config
from trainer.train_dreambooth_loldu import make_accelerator

ROOT = Path(__file__).resolve().parents[3]
PRIOR = ["--with_prior_preservation", "--class_prompt", "a toy", "--num_class_images", "3"]


def deltas(folder: Path) -> torch.Tensor:
    return torch.cat([layer.delta for layer in read_concept(folder / "concept.safetensors").layers])


def metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_same(folder: Path, expected: Path) -> None:
    """Compare the adapters and the losses, which one process writes."""
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
def test_two_processes_equal_one_with_twice_the_batch(
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


@pytest.mark.slow
def test_the_real_commands(flags: list[str], tmp_path: Path) -> None:
    """Start two processes with torch's launcher; accelerate's starts one on a CPU."""
    two, one = tmp_path / "two", tmp_path / "one"
    launchers = [
        (["torch.distributed.run", "--standalone", "--nproc_per_node", "2"], "2", two),
        (["accelerate.commands.launch", "--cpu", "--num_processes", "1"], "4", one),
    ]
    for launcher, batch, folder in launchers:
        script = [str(ROOT / "trainer" / "train_dreambooth_loldu.py"), *flags, *PRIOR]
        more = ["--train_batch_size", batch, "--output_dir", str(folder)]
        finished = subprocess.run(
            [sys.executable, "-m", *launcher, *script, *more],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "ACCELERATE_USE_CPU": "yes",
                "GLOO_SOCKET_IFNAME": "lo",
            },
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stderr.count("Saved ") == 1
    check_same(two, one)


def test_the_ladder_is_for_one_process(
    make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Accelerator, "num_processes", 2)
    with pytest.raises(LoLDUError, match="--on_oom adapt works in one process; with several"):
        make_accelerator(make_config("--on_oom", "adapt"))
