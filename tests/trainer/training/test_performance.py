"""Gradient checkpointing and torch.compile change nothing but rounding."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from loldu import read_concept
from trainer.__main__ import run

ROOT = Path(__file__).resolve().parents[3]
PRIOR = ["--with_prior_preservation", "--class_prompt", "a toy", "--num_class_images", "2"]


def deltas(folder: Path) -> torch.Tensor:
    return torch.cat([layer.delta for layer in read_concept(folder / "concept.safetensors").layers])


@pytest.mark.parametrize("method", ["loldu", "svfit", "lora"])
def test_gradient_checkpointing_gives_the_same_gradients(
    method: str, flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step of plain descent is the gradient; AdamW's first step is only its sign."""
    calls: list[object] = []
    checkpoint = torch.utils.checkpoint.checkpoint

    def counted(function: object, *args: object, **options: object) -> object:
        calls.append(function)
        return checkpoint(function, *args, **options)

    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", counted)
    monkeypatch.setattr(
        "trainer.training.optimizers.optimizer_class",
        lambda _: (torch.optim.SGD, {"weight_decay": 0}),
    )
    plain, checkpointed = tmp_path / "plain", tmp_path / "checkpointed"
    common = [*flags, *PRIOR, "--method", method, "--max_train_steps", "2", "--learning_rate", "1"]
    common += ["--checkpointing_steps", "2"]
    assert run([*common, "--output_dir", str(plain)]) == 0
    assert not calls
    more = ["--gradient_checkpointing", "--output_dir", str(checkpointed)]
    assert run([*common, *more]) == 0
    assert calls
    name = "checkpoint-000002/trained.safetensors"
    ours, theirs = load_file(checkpointed / name), load_file(plain / name)
    for key, expected in theirs.items():
        torch.testing.assert_close(ours[key], expected, rtol=1e-4, atol=1e-6)


def test_a_resumed_run_may_take_less_memory(flags: list[str], tmp_path: Path) -> None:
    assert run([*flags, "--checkpointing_steps", "2", "--max_train_steps", "2"]) == 0
    before = deltas(tmp_path / "run")
    more = ["--gradient_checkpointing", "--on_oom", "adapt", "--resume", "latest"]
    assert run([*flags, *more]) == 0
    assert not torch.equal(deltas(tmp_path / "run"), before)


# Inductor takes minutes for a whole UNet on a CPU; the graph and its gradients are the same.
WITHOUT_INDUCTOR = """
import functools, sys, torch
torch.compile = functools.partial(torch.compile, backend="aot_eager")
from trainer.__main__ import run
sys.exit(run(sys.argv[1:]))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "more", "target"),
    [
        (["-m", "trainer"], ["--compile", "blocks"], []),
        (
            ["-c", WITHOUT_INDUCTOR],
            ["--compile", "unet", "--gradient_checkpointing"],
            ["--prior_target", "base"],
        ),
    ],
    ids=["blocks", "unet"],
)
def test_compiled_training_is_the_same(
    command: list[str], more: list[str], target: list[str], flags: list[str], tmp_path: Path
) -> None:
    """Run in separate processes, because Dynamo cannot trace the type checks of other tests."""
    common = [*flags, *PRIOR, *target, "--checkpointing_steps", "2"]
    common += ["--validation_prompt", "sks", "--validation_steps", "2"]
    eager, compiled, resumed = (tmp_path / name for name in ("eager", "compiled", "resumed"))
    assert run([*common, "--output_dir", str(eager)]) == 0
    resume = ["--resume", str(compiled / "checkpoint-000002")]
    for folder, other in ((compiled, []), (resumed, resume)):
        argv = [*common, *more, *other, "--output_dir", str(folder)]
        finished = subprocess.run(
            [sys.executable, *command, *argv],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        assert "recompile_limit" not in finished.stderr
    torch.testing.assert_close(deltas(compiled), deltas(eager), rtol=1e-2, atol=1e-4)
    assert torch.equal(deltas(resumed), deltas(compiled))
    name = "checkpoint-000004/trained.safetensors"
    assert load_file(compiled / name).keys() == load_file(eager / name).keys()
    for step in (0, 2, 4):
        name = f"validation/{step:06d}.png"
        with Image.open(eager / name) as left, Image.open(compiled / name) as right:
            pairs = zip(left.tobytes(), right.tobytes(), strict=True)
            assert max(abs(a - b) for a, b in pairs) <= 2


def test_deterministic_algorithms_change_nothing_on_a_cpu(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    common = [*flags, "--no_sample_at_end", "--lora_file", "no", "--checkpointing_steps", "4"]
    common += ["--max_train_steps", "4"]
    plain, strict = tmp_path / "plain", tmp_path / "strict"
    assert run([*common, "--output_dir", str(plain)]) == 0
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        assert run([*common, "--deterministic", "--output_dir", str(strict)]) == 0
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)
    files = [folder / "checkpoint-000004" / "trained.safetensors" for folder in (plain, strict)]
    assert files[0].read_bytes() == files[1].read_bytes()
