from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from trainer.__main__ import run
from trainer.options.config import Config
from trainer.train_dreambooth_loldu import explain_warmup
from trainer.training import optimizers
from trainer.training.optimizers import make_optimizer

LIBRARIES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}
RATES = {"adamw": "1e-2", "adamw8bit": "1e-2", "prodigy": "1"}


def group(*parameters: nn.Parameter) -> list[dict[str, Any]]:
    return [{"params": [*parameters], "lr": 1e-2}]


@pytest.fixture(params=["adamw", "adamw8bit", "prodigy"])
def chosen(request: pytest.FixtureRequest) -> list[str]:
    """Return the flags of an optimizer, if it is installed."""
    if request.param in LIBRARIES:
        pytest.importorskip(LIBRARIES[request.param])
    return ["--optimizer", request.param, "--learning_rate", RATES[request.param]]


def test_every_optimizer_descends(chosen: list[str], make_config: Callable[..., Config]) -> None:
    target = torch.linspace(-1, 1, 5000)
    parameter = nn.Parameter(torch.zeros_like(target))
    config = make_config(*chosen).optimization
    groups = [{"params": [parameter], "lr": config.learning_rate}]
    optimizer = make_optimizer(config, groups)
    for _ in range(300):
        optimizer.zero_grad()
        (parameter - target).square().sum().backward()
        optimizer.step()
    assert (parameter - target).detach().norm() < 0.1 * target.norm()


def test_resuming_is_bit_identical(chosen: list[str], flags: list[str], tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    common = [*flags, *chosen, "--checkpointing_steps", "2", "--lr_warmup_steps", "3"]
    assert run([*common, "--output_dir", str(whole)]) == 0
    checkpoint = str(whole / "checkpoint-000002")
    assert run([*common, "--output_dir", str(resumed), "--resume", checkpoint]) == 0
    name = "checkpoint-000004/trained.safetensors"
    ours, theirs = load_file(whole / name), load_file(resumed / name)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert any(tensor.abs().max() > 0 for key, tensor in ours.items() if key.endswith("dz"))


@pytest.mark.parametrize("name", ["adamw8bit", "prodigy"])
def test_a_missing_library_gives_one_clear_error(
    name: str,
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    missing = dict(optimizers._FROM_LIBRARIES)
    missing[name] = ("no_such_library.optim", *missing[name][1:])
    monkeypatch.setattr(optimizers, "_FROM_LIBRARIES", missing)
    assert run([*flags, "--optimizer", name, "--learning_rate", "1"]) == 2
    assert capsys.readouterr().err == (
        f"--optimizer {name} needs the package no_such_library: pip install 'loldu[optimizers]', "
        "or leave the flag out to train with AdamW.\n"
    )
    assert not (tmp_path / "run").exists()


def test_prodigy_needs_a_learning_rate_of_one(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*flags, "--optimizer", "prodigy"]) == 2
    assert capsys.readouterr().err == (
        "--learning_rate is 0.01, but --optimizer prodigy multiplies it by the rate that it finds; "
        "use --learning_rate 1.\n"
    )


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--text_encoder_lr", "0.5"], "leave out --text_encoder_lr and --word_lr."),
        (["--concepts", "concepts.toml"], "or train one concept per run."),
    ],
)
def test_prodigy_finds_one_rate(
    more: list[str], message: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*flags, "--optimizer", "prodigy", "--learning_rate", "1", *more]) == 2
    assert message in capsys.readouterr().err


def test_8_bit_adam_warns_when_it_saves_nothing(
    make_config: Callable[..., Config],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instead = {"adamw8bit": ("torch.optim", "AdamW", {})}
    monkeypatch.setattr(optimizers, "_FROM_LIBRARIES", instead)
    config = make_config("--optimizer", "adamw8bit")
    make_optimizer(config.optimization, group(nn.Parameter(torch.zeros(4096))))
    assert not caplog.records
    make_optimizer(config.optimization, group(nn.Parameter(torch.zeros(4095))))
    assert "adamw8bit saves nothing here" in caplog.text


def test_eight_bit_state_starts_at_4096_numbers(make_config: Callable[..., Config]) -> None:
    pytest.importorskip("bitsandbytes")
    parameters = [nn.Parameter(torch.zeros(size)) for size in (4095, 4096)]
    optimizer = make_optimizer(
        make_config("--optimizer", "adamw8bit").optimization, group(*parameters)
    )
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    kept = [optimizer.state[parameter]["state1"].dtype for parameter in parameters]
    assert kept == [torch.float32, torch.uint8]


def test_a_warm_up_that_outlasts_the_run_is_explained(
    make_config: Callable[..., Config], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "trainer")
    explain_warmup(make_config("--lr_warmup_steps", "4"))  # of 4 steps
    assert not caplog.text
    explain_warmup(make_config("--lr_warmup_steps", "10"))
    assert "rises until the end and reaches 40% of its value" in caplog.text
