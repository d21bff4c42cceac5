"""One new option, and one new preset, are found wherever options and presets are read."""

import dataclasses
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from loldu.errors import LoLDUError
from loldu.options import option, options
from trainer.options import preset
from trainer.options.concepts import concept_configs
from trainer.options.config import Config, InstanceConfig, to_toml
from trainer.options.preset import PRESETS, configure, parse
from trainer.results.metadata import public_sections
from trainer.training.checkpoint import find_checkpoint
from webui.teaching import recipes
from webui.teaching.recipes import presets_for


@dataclass(frozen=True)
class ToyInstance(InstanceConfig):
    """Toys."""

    # Number of toys: more are more fun.
    toys: int = option(1, at_least=1, at_most=5, methods=("lora",))
    # Name of the owner.
    owner: str = option(
        "ann", needs="token", resume="may_change", publish="never", per_concept=True
    )


@dataclass(frozen=True, kw_only=True)
class ToyConfig(Config):
    """Toys."""

    instance: ToyInstance = field(metadata={"publish": "concept"})


@pytest.fixture
def required(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    monkeypatch.setattr(preset, "Config", ToyConfig)
    return ["--instance_data_dir", "pictures", "--output_dir", str(tmp_path), "--method", "lora"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--toys", "9"], "--toys is 9; it must be at least 1 and at most 5."),
        (["--toys", "2", "--method", "svfit"], "--toys is for lora; leave it out"),
        (["--owner", "bob"], "--owner does nothing without --token"),
    ],
)
def test_a_toy_option_is_checked(flags: list[str], message: str, required: list[str]) -> None:
    with pytest.raises(LoLDUError, match=message):
        parse([*required, *flags])


def test_a_toy_option_is_a_flag_a_key_and_a_value(
    required: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse([*required, "--help"])
    assert "Number of toys: more are more fun. (default: 1)" in capsys.readouterr().out
    file = tmp_path / "own.toml"
    file.write_text("[instance]\ntoys = 3\n")
    assert options(ToyConfig)["toys"].section == "instance"
    assert parse([*required, "--preset", str(file)]).instance.toys == 3
    values = {"toys": 3, "instance_data_dir": "pictures", "output_dir": "run", "method": "lora"}
    assert "toys = 3" in to_toml(configure(values))


def test_a_toy_option_in_a_table_of_concepts(required: list[str], tmp_path: Path) -> None:
    file = tmp_path / "concepts.toml"
    file.write_text("[a]\ninstance_data_dir = 'a'\nowner = 'bob'\n[b]\ninstance_data_dir = 'b'")
    argv = [*required, "--method", "loldu", "--concepts", str(file)]
    assert [own.instance.owner for own in concept_configs(parse(argv)).values()] == ["bob", "ann"]
    file.write_text("[a]\ntoys = 2")
    with pytest.raises(LoLDUError, match=r"unknown key toys; .*initializer_token, owner, class"):
        concept_configs(parse(argv))


def test_a_toy_option_when_a_run_is_resumed(required: list[str], tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoint-000001"
    checkpoint.mkdir()
    for name in ("trained.safetensors", "optimizer.pt"):
        (checkpoint / name).touch()
    state = {"step": 1, "seconds": 0.5, "inputs": {}}
    (checkpoint / "state.json").write_text(json.dumps(state))
    (checkpoint / "config.toml").write_text(to_toml(parse(required)))
    resumed = [*required, "--resume", "latest"]
    named = ["--owner", "bob", "--token", "x"]
    with pytest.raises(LoLDUError, match="--token is x but was None"):
        find_checkpoint(parse([*resumed, *named]))
    config = parse(resumed)
    of_bob = dataclasses.replace(config.instance, owner="bob")
    assert find_checkpoint(dataclasses.replace(config, instance=of_bob)) == checkpoint
    with pytest.raises(LoLDUError, match="--toys is 2 but was 1"):
        find_checkpoint(parse([*resumed, "--toys", "2"]))


def test_a_toy_option_is_published_or_not(required: list[str]) -> None:
    public = public_sections(parse([*required, "--toys", "2"]))["instance"]
    assert public["toys"] == 2
    assert "owner" not in public


def test_help_of_concepts_names_every_option_that_a_table_may_have(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    named = text.partition("A table may have ")[2].partition(". (default")[0]
    words = named.replace(" and ", ", ").split(", ")
    assert set(words) == {name for name, each in options(Config).items() if each.per_concept}


def test_a_preset_is_a_file_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "presets"
    shutil.copytree(PRESETS, folder)
    (folder / "a_toy.toml").write_text("rank = 7\n[preset]\nabout = 'For toys.'\n")
    for module in (preset, recipes):
        monkeypatch.setattr(module, "PRESETS", folder)
    required = ["--instance_data_dir", "pictures", "--output_dir", "run"]
    assert parse(["--preset", "a_toy", *required]).adapter.rank == 7
    with pytest.raises(LoLDUError, match=r"takes fast, .*_always_on, sdxl, klein, a_toy or a"):
        parse(["--preset", "toy"])
    with pytest.raises(SystemExit):
        parse(["--help"])
    assert "a_toy: For toys." in capsys.readouterr().out
    shown = presets_for("stable-diffusion-v1-5/stable-diffusion-v1-5")
    assert list(shown) == ["fast", "paper", "best", "low_vram", "a_toy"]
    assert shown["a_toy"].about == "For toys."


def test_help_of_the_trainer_loads_no_torch() -> None:
    import subprocess
    import sys

    code = "import sys, trainer.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
