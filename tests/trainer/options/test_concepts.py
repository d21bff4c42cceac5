"""Several concepts in one run equal concepts trained alone."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loldu import read_concept
from loldu.errors import LoLDUError
from trainer.__main__ import run
from trainer.options.concepts import concept_configs
from trainer.options.config import Config

MakeConfig = Callable[..., Config]
PRIOR = ("--with_prior_preservation", "--class_prompt", "a toy", "--num_class_images", "3")


def deltas(path: Path) -> torch.Tensor:
    return torch.cat([layer.delta for layer in read_concept(path).layers])


def without(flags: list[str], *names: str) -> list[str]:
    for name in names:
        index = flags.index(name)
        flags = flags[:index] + flags[index + 2 :]
    return flags


@pytest.fixture
def toml(tmp_path: Path, pictures: Path) -> Path:
    """Write a file of three concepts; the first two have other pictures, in number and colour."""
    for name, colour, count in (("dog", (20, 160, 30), 4), ("toy_2", (10, 20, 200), 2)):
        folder = tmp_path / name
        folder.mkdir()
        for index in range(count):
            noise = np.random.default_rng(index).integers(0, 50, (20, 20, 3), dtype=np.uint8)
            Image.fromarray(noise + np.array(colour, np.uint8)).save(folder / f"{index}.png")
    path = tmp_path / "concepts.toml"
    path.write_text(
        "[dog]\ninstance_data_dir = 'dog'\ninstance_prompt = 'a photo of sks dog'\n"
        "[toy_2]\ninstance_data_dir = 'toy_2'\ninstance_prompt = 'zwx toy'\n"
        "class_prompt = ['toy', 'a photo of a toy']\n"
        f"[red]\ninstance_data_dir = '{pictures}'\ninstance_prompt = 'sks'\n"
    )
    return path


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(("--max_delta_norm", "0.02"), marks=pytest.mark.slow),
        pytest.param((*PRIOR, "--prior_batch_size", "1"), marks=pytest.mark.slow),
        (*PRIOR, "--prior_target", "base", "--train_text_encoder", "--snr_gamma", "5"),
    ],
)
def test_concepts_trained_together_equal_those_trained_alone(
    more: tuple[str, ...],
    flags: list[str],
    toml: Path,
    tmp_path: Path,
    make_config: MakeConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With plain descent, whose steps are the gradients, clipped and decayed.

    The two runs' matrix products have different shapes and so round differently, by about 1e-7.
    AdamW's first step is the gradient's sign: for a gradient that is itself 1e-8, rounding decides
    it, and the CPU decides the rounding.
    """
    monkeypatch.setattr(
        "trainer.training.optimizers.optimizer_class", lambda _: (torch.optim.SGD, {})
    )
    own = ("--instance_data_dir", "--instance_prompt", "--output_dir")
    common = [*without(flags, *own), "--max_grad_norm", "0.05", *more]
    common += ["--learning_rate", "1"]
    together, out = tmp_path / "together", ("--output_dir", str(tmp_path / "together"))
    assert run([*common, *out, "--concepts", str(toml)]) == 0
    configs = concept_configs(make_config("--concepts", str(toml), *more, *out))
    assert [*configs] == ["dog", "toy_2", "red"]
    for name, config in configs.items():
        folder = together / "concepts" / name
        alone = tmp_path / "alone" / name
        own_flags = [
            *("--instance_data_dir", str(config.instance.instance_data_dir)),
            *("--instance_prompt", str(config.instance.instance_prompt)),
        ]
        if config.prior.class_prompt:
            own_flags += ["--class_prompt", *config.prior.class_prompt]
        assert run([*common, *own_flags, "--output_dir", str(alone)]) == 0
        ours, theirs = (deltas(x / "concept.safetensors") for x in (folder, alone))
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        last, alone_last = (
            json.loads((x / "metrics.jsonl").read_text().splitlines()[-1]) for x in (folder, alone)
        )
        for key in ("loss", "instance_loss", "prior_loss", "delta_norm"):
            assert last[key] == pytest.approx(alone_last[key], rel=1e-4)
        assert (folder / "config.toml").exists()
        assert (folder / "summary.json").exists()


def test_a_resumed_run_of_several_is_bit_identical(
    flags: list[str], toml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = ("--instance_data_dir", "--instance_prompt", "--output_dir")
    common = [*without(flags, *own), "--concepts", str(toml), "--checkpointing_steps", "2"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run([*common, "--output_dir", str(whole)]) == 0
    again = [*common, "--output_dir", str(resumed), "--resume", str(whole / "checkpoint-000002")]
    text = toml.read_text()
    toml.write_text(text.replace("zwx toy", "another toy"))
    assert run(again) == 2
    assert "--instance_prompt is another toy but was zwx toy" in capsys.readouterr().err
    toml.write_text(text)
    assert run(again) == 0
    for name in ("dog", "toy_2", "red"):
        file = Path("concepts") / name / "concept.safetensors"
        assert torch.equal(deltas(whole / file), deltas(resumed / file))
    assert run([*common, "--output_dir", str(whole)]) == 2
    assert "holds another run" in capsys.readouterr().err


def test_every_concept_has_validation_pictures_of_its_own(
    flags: list[str], toml: Path, tmp_path: Path
) -> None:
    more = ["--validation_prompt", "sks", "--validation_steps", "2", "--learning_rate", "1"]
    flags = without(flags, "--instance_data_dir", "--instance_prompt")
    assert run([*flags, *more, "--concepts", str(toml)]) == 0
    folders = [tmp_path / "run" / "concepts" / name / "validation" for name in ("dog", "red")]
    first, last = (
        [(folder / name).read_bytes() for folder in folders]
        for name in ("000000.png", "000004.png")
    )
    assert first[0] == first[1]
    assert last[0] != last[1] != first[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; begin each concept"),
        ("[dog", "cannot be read as TOML"),
        ("dog = 1", "dog stands outside a table"),
        ("['a.b']\ninstance_prompt = 'x'", r"\[a\.b\] cannot name a concept"),
        ("[dog]\ninstance_prompts = 'x'", "perhaps you meant instance_prompt"),
        ("[dog]\nlearning_rate = 1", "unknown key learning_rate; choose from instance_data"),
        ("[dog]\ninstance_prompt = 1", "instance_prompt is 1; it must be a string"),
        ("[dog]\nclass_prompt = [1]", r"class_prompt is \[1\]; it must be a list, each a string"),
        ("[dog]\ninstance_prompt = 'x'", r"\[dog\]: --instance_data_dir is missing"),
    ],
)
def test_a_mistake_in_the_file_gives_one_clear_error(
    text: str, message: str, flags: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "concepts.toml"
    path.write_text(text)
    from trainer.options.preset import parse

    config = parse([*without(flags, "--instance_data_dir"), "--concepts", str(path)])
    with pytest.raises(LoLDUError, match=message):
        concept_configs(config)


def test_a_missing_file_is_reported(make_config: MakeConfig) -> None:
    config = make_config("--concepts", "nowhere.toml")
    with pytest.raises(LoLDUError, match=r"nowhere\.toml cannot be read .*: there is no such file"):
        concept_configs(config)
