"""fp16 through the trainer's own loop, on a CPU: only the kernels of a GPU are not tried here."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from torch import Tensor

from loldu import read_concept
from trainer import train_dreambooth_loldu
from trainer.__main__ import run
from trainer.options.config import Config
from trainer.training import fit

ROOT = Path(__file__).parents[3]
Train = Callable[..., Path]


class Watch:
    """What every optimizer step of a run did."""

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.moved: list[bool] = []
        self.network: set[torch.dtype] = set()
        self.trained: set[torch.dtype] = set()
        self.norms: list[float] = []


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def train(flags: list[str], tmp_path: Path, watch: Watch, monkeypatch: pytest.MonkeyPatch) -> Train:
    """Train in fp16 on the CPU: accelerate's own paths for fp16, with torch's scaler for CPUs."""
    make, update = train_dreambooth_loldu.make_accelerator, fit.update
    clip = torch.nn.utils.clip_grad_norm_
    scaler: dict[str, Any] = {}

    def clip_watched(parameters: list[torch.nn.Parameter], max_norm: float) -> Tensor:
        norm = clip(parameters, max_norm)
        watch.norms.append(norm.item())
        return norm

    def make_for_cpu(config: Config) -> Accelerator:
        accelerator = make(parse_with("no", config))
        if config.optimization.mixed_precision == "fp16":
            accelerator.native_amp = True
            AcceleratorState._shared_state["_mixed_precision"] = "fp16"
            accelerator.scaler = torch.amp.GradScaler("cpu", **scaler)
        return accelerator

    def watched(running: fit.Run, *rest: Any) -> None:  # noqa: ANN401
        parameters = running.trained.parameters()
        before = [parameter.detach().clone() for parameter in parameters]
        if running.accelerator.scaler:
            watch.scales.append(running.accelerator.scaler.get_scale())
        update(running, *rest)
        watch.moved.append(not all(map(torch.equal, before, parameters)))
        watch.network.add(running.pipeline.unet.dtype)
        watch.trained |= {parameter.dtype for parameter in parameters}

    monkeypatch.setattr(train_dreambooth_loldu, "make_accelerator", make_for_cpu)
    monkeypatch.setattr(fit, "update", watched)
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip_watched)

    def train(name: str, precision: str, *more: str, **options: Any) -> Path:  # noqa: ANN401
        AcceleratorState._reset_state(reset_partial_state=True)
        scaler.clear()
        scaler.update(options)
        out = tmp_path / name
        command = [*flags, "--mixed_precision", precision, "--output_dir", str(out)]
        command += ["--no_sample_at_end", "--lora_file", "no", *more]
        assert run(command) == 0
        return out

    return train


def parse_with(precision: str, config: Config) -> Config:
    from dataclasses import replace

    return replace(config, optimization=replace(config.optimization, mixed_precision=precision))


def deltas(run_dir: Path) -> Tensor:
    return torch.cat([y.delta for y in read_concept(run_dir / "concept.safetensors").layers])


def losses(run_dir: Path) -> list[float]:
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["loss"] for line in lines]


def scaler_of(checkpoint: Path) -> dict[str, Any]:
    return torch.load(checkpoint / "optimizer.pt", weights_only=True)["scaler"]


POCKET = [
    *("--preset", "pocket", "--no_with_prior_preservation"),
    *("--pretrained_model_name_or_path", str(ROOT / "pocket" / "base")),
    *("--instance_data_dir", str(ROOT / "datasets" / "concepts" / "dotted_rabbit")),
    *("--max_train_steps", "3", "--learning_rate", "1e-2", "--train_batch_size", "8"),
]


def test_it_follows_the_run_in_fp32_at_pocket_size(train: Train, watch: Watch) -> None:
    single = train("fp32", "no", *POCKET)
    assert watch.network == {torch.float32}
    watch.network.clear()
    norms = watch.norms.copy()
    watch.norms.clear()
    half = train("fp16", "fp16", *POCKET, init_scale=1024.0)
    assert (watch.network, watch.trained) == ({torch.float16}, {torch.float32})
    assert all(watch.moved)
    assert watch.norms == pytest.approx(norms, rel=5e-2)  # clipped without their scale
    assert losses(half) == pytest.approx(losses(single), rel=2e-2)
    expected, found = deltas(single), deltas(half)
    assert not torch.equal(found, expected)
    assert torch.cosine_similarity(found, expected, dim=0) > 0.99
    assert (found.norm() / expected.norm()).item() == pytest.approx(1, abs=0.05)


def test_steps_that_overflow_are_skipped_and_halve_the_scale(train: Train, watch: Watch) -> None:
    train("run", "fp16", "--max_train_steps", "12", init_scale=2.0**30)
    assert watch.moved.count(False) >= 2
    assert watch.moved[-1]
    scale = 2.0**30
    for found, moved in zip(watch.scales, watch.moved, strict=True):
        assert found == scale
        scale = scale if moved else scale / 2


def test_resuming_restores_the_scaler_bit_by_bit(train: Train, watch: Watch) -> None:
    more = ["--checkpointing_steps", "3", "--ema_decay", "0.9"]
    grows: dict[str, Any] = {"init_scale": 2.0**6, "growth_interval": 2}
    whole = train("whole", "fp16", *more, "--max_train_steps", "6", **grows)
    scales = watch.scales.copy()
    assert scales == [2.0 ** (6 + step // 2) for step in range(6)]
    watch.scales.clear()
    first = whole / "checkpoint-000003"
    resumed = train(
        "resumed", "fp16", *more, "--max_train_steps", "6", "--resume", str(first), **grows
    )
    assert watch.scales == scales[3:]
    assert torch.equal(deltas(whole), deltas(resumed))
    last = "checkpoint-000006"
    assert scaler_of(whole / last) == scaler_of(resumed / last)
    ours, theirs = (load_file(folder / last / "trained.safetensors") for folder in (whole, resumed))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
