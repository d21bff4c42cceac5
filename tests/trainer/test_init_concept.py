"""A run that starts from another run's concept."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from loldu import load_concept, read_concept
from loldu.base.open import load_pipeline
from loldu.errors import LoLDUError
from trainer.__main__ import run
from trainer.methods.loldu import start_from_concepts
from trainer.methods.method import add_trainables, save_result
from trainer.options.config import Config

MakeConfig = Callable[..., Config]
Predict = Callable[[StableDiffusionPipeline], torch.Tensor]
QUICK = ["--no_sample_at_end", "--lora_file", "no"]


@pytest.fixture
def concept(base_folder: Path, make_config: MakeConfig, tmp_path: Path) -> Path:
    """A concept of rank 4."""
    return a_concept(base_folder, make_config(), tmp_path / "first")


def a_concept(base_folder: Path, config: Config, folder: Path) -> Path:
    folder.mkdir()
    pipeline = load_pipeline(str(base_folder))
    trained = add_trainables(pipeline, {"default": config}, {})
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    save_result(pipeline, trained, "default", config, {}, folder)
    return folder / "concept.safetensors"


@pytest.mark.parametrize(
    "more",
    [
        [],
        ["--rank", "8"],
        ["--rank", "full"],
        ["--rank", "full", "--alpha", "4"],
        ["--rank", "8", "--normalize_directions"],
        ["--rank", "8", "--diagonal_init", "ones"],
    ],
    ids=" ".join,
)
def test_the_start_is_the_concept(
    more: list[str],
    concept: Path,
    base_folder: Path,
    make_config: MakeConfig,
    predict: Predict,
    tmp_path: Path,
) -> None:
    config = make_config(*more, "--init_concept", str(concept))
    pipeline = load_pipeline(str(base_folder))
    base = predict(pipeline)
    trained = add_trainables(pipeline, {"default": config}, {})
    start_from_concepts(pipeline, {"default": config})
    (tmp_path / "second").mkdir()
    save_result(pipeline, trained, "default", config, {}, tmp_path / "second")
    start = {y.name: y.delta for y in read_concept(tmp_path / "second/concept.safetensors").layers}
    exact = not {"--alpha", "--normalize_directions"} & {*more}  # they divide and multiply again
    for layer in read_concept(concept).layers:
        delta = start[layer.name]
        wanted = torch.cat([layer.delta, torch.zeros(len(delta) - 4)])
        torch.testing.assert_close(delta, wanted, **({"rtol": 0, "atol": 0} if exact else {}))
        assert (len(delta) > 4) == ("--rank" in more)
    whole = load_pipeline(str(base_folder))
    load_concept(whole, concept)
    assert (predict(whole) - base).abs().max() > 1e-2
    torch.testing.assert_close(predict(pipeline), predict(whole), rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_from_a_concept_and_resumes_without_it(
    concept: Path, flags: list[str], tmp_path: Path
) -> None:
    common = [*flags, *QUICK, "--rank", "8", "--checkpointing_steps", "2", "--ema_decay", "0.9"]
    common += ["--init_concept", str(concept), "--learning_rate", "1e-6"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run([*common, "--output_dir", str(whole)]) == 0
    before = {layer.name: layer.delta for layer in read_concept(concept).layers}
    for layer in read_concept(whole / "concept.safetensors").layers:
        torch.testing.assert_close(layer.delta[:4], before[layer.name], rtol=0, atol=2e-5)
        assert not torch.equal(layer.delta[:4], before[layer.name])
    concept.unlink()
    checkpoint = ["--resume", str(whole / "checkpoint-000002")]
    assert run([*common, *checkpoint, "--output_dir", str(resumed)]) == 0
    name = "checkpoint-000004/trained.safetensors"
    ours, theirs = load_file(whole / name), load_file(resumed / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_each_of_several_concepts_has_its_start(
    concept: Path, base_folder: Path, pictures: Path, make_config: MakeConfig
) -> None:
    configs = {"a": make_config("--init_concept", str(concept)), "b": make_config()}
    pipeline = load_pipeline(str(base_folder))
    trained = add_trainables(pipeline, configs, {})
    start_from_concepts(pipeline, configs)
    first, second = trained.delta_norms()
    assert first > 0.1
    assert second == 0


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["--rank", "2"],
            r"has 4 directions in layer .*, and there are 2: start with the",
        ),
        (["--method", "svfit"], "has other directions in layer"),
        (["--target_modules", "to_q"], r"changes layer .*, which 'default' leaves alone: start"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    more: list[str], message: str, concept: Path, base_folder: Path, make_config: MakeConfig
) -> None:
    config = make_config("--init_concept", str(concept), *more)
    pipeline = load_pipeline(str(base_folder))
    add_trainables(pipeline, {"default": config}, {})
    with pytest.raises(LoLDUError, match=message):
        start_from_concepts(pipeline, {"default": config})


def test_a_start_that_is_no_concept_is_refused_before_the_base_is_loaded(
    flags: list[str], pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--init_concept", str(pictures / "a.png")]
    assert run([*flags, "--pretrained_model_name_or_path", "./nowhere", *more]) == 2
    assert str(pictures / "a.png") in capsys.readouterr().err
    assert run([*flags, "--method", "lora", *more]) == 2
    assert "--init_concept is for loldu and svfit" in capsys.readouterr().err
