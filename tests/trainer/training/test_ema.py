from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file
from torch import nn

from loldu import read_concept
from loldu.adapter.layer import LoLDULayer
from loldu.base.open import load_pipeline
from trainer.__main__ import run
from trainer.methods.method import add_trainables
from trainer.options.concepts import SINGLE
from trainer.options.config import Config
from trainer.training.control import Control
from trainer.training.ema import EMA
from trainer.training.fit import Run, as_saved


def make_parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in (3, 1, 5)]


@torch.no_grad()
def move(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.add_(torch.randn(parameter.shape, generator=generator))


@pytest.mark.parametrize("decay", [0.5, 0.99])
def test_the_average_equals_that_of_diffusers(decay: float) -> None:
    parameters = make_parameters()
    ours, theirs = EMA(parameters, decay), EMAModel(parameters, decay=decay)
    for step in range(1, 31):
        move(parameters, step)
        ours.update(step)
        theirs.step(parameters)
        for average, expected in zip(ours.state(), theirs.shadow_params, strict=True):
            torch.testing.assert_close(average, expected)


def test_swapping_keeps_the_parameters() -> None:
    parameters = make_parameters()
    ema = EMA(parameters, 0.9)
    start = [parameter.detach().clone() for parameter in parameters]
    move(parameters, 1)
    trained = [parameter.detach().clone() for parameter in parameters]
    addresses = [parameter.data_ptr() for parameter in parameters]

    def interrupted() -> None:
        with ema.applied():
            for parameter, value in zip(parameters, start, strict=True):
                assert torch.equal(parameter, value)
                parameter.data.mul_(2)  # what is done to them here is neither kept nor averaged
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for parameter, value in zip(parameters, trained, strict=True):
        assert torch.equal(parameter, value)
        assert parameter.requires_grad
    assert [parameter.data_ptr() for parameter in parameters] == addresses
    assert all(torch.equal(a, b) for a, b in zip(ema.state(), start, strict=True))


def test_without_a_decay_there_is_no_average() -> None:
    parameters = make_parameters()
    ema = EMA(parameters, None)
    before = [parameter.detach().clone() for parameter in parameters]
    ema.update(1)
    with ema.applied():
        assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))
    assert ema.state() == []


def test_the_concept_is_the_average_and_resumes(flags: list[str], tmp_path: Path) -> None:
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    common = [*flags, "--ema_decay", "0.9", "--no_train_scale", "--checkpointing_steps", "1"]
    assert run([*common, "--output_dir", str(whole)]) == 0
    saved = [load_file(path / "trained.safetensors") for path in sorted(whole.glob("check*"))]
    offsets = {name: [nn.Parameter(torch.zeros(4))] for name in saved[0] if name.endswith("dz")}
    concept = read_concept(whole / "concept.safetensors")
    assert len(concept.layers) == len(offsets)
    for layer in concept.layers:
        name = next(name for name in offsets if layer.name in name)
        theirs = EMAModel(offsets[name], decay=0.9)
        for adapter in saved:
            offsets[name][0].data.copy_(adapter[name])
            theirs.step(offsets[name])
        torch.testing.assert_close(layer.delta, theirs.shadow_params[0])
        assert not torch.allclose(layer.delta, saved[-1][name], rtol=1e-3)
    checkpoint = ["--resume", str(whole / "checkpoint-000002")]
    assert run([*common, "--output_dir", str(resumed), *checkpoint]) == 0
    again = read_concept(resumed / "concept.safetensors")
    for layer, other in zip(concept.layers, again.layers, strict=True):
        assert torch.equal(layer.delta, other.delta)


@torch.no_grad()
def test_the_average_is_projected_into_the_ball(
    base_folder: Path, make_config: Callable[..., Config]
) -> None:
    """Of two points where delta = (1 + ds) dz + ds z_ref is 0, the mean has a large delta."""
    limit = 1e-3
    config = make_config("--ema_decay", "0.5", "--max_delta_norm", str(limit))
    pipeline = load_pipeline(str(base_folder))
    configs = {SINGLE: config}
    trained = add_trainables(pipeline, configs, {})
    ema = EMA(trained.parameters(), 0.5)
    accelerator = Accelerator()
    control = Control(config.run, accelerator)
    of_run = Run(config, configs, {}, pipeline, trained, ema, accelerator, control)
    layers = [module for module in pipeline.unet.modules() if isinstance(module, LoLDULayer)]

    def largest() -> float:
        return max(layer.delta_norm(SINGLE).item() for layer in layers)

    for step, (ds, share) in enumerate([(0.5, -1 / 3), (-0.5, 1.0)], 1):
        for layer in layers:
            diagonal = layer.diagonal(SINGLE)
            assert diagonal.z_ref is not None
            diagonal.ds.fill_(ds)
            diagonal.dz.copy_(share * diagonal.z_ref)
        ema.update(step)
        assert largest() < limit / 10
    with ema.applied():
        assert largest() > 10 * limit
    with as_saved(of_run):
        assert limit / 2 < largest() <= limit * (1 + 1e-5)
    assert largest() < limit / 10


@pytest.mark.parametrize("decay", ["0", "1", "nan"])
def test_invalid_decays_are_refused(
    decay: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*flags, "--ema_decay", decay]) == 2
    assert "it must be above 0 and below 1." in capsys.readouterr().err
