import dataclasses
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from loldu.errors import LoLDUError
from loldu.options import options
from trainer.__main__ import run
from trainer.options.config import Config, to_toml
from trainer.options.preset import PRESETS, parse

WORD = ["--method", "textual_inversion", "--instance_prompt", "a <x>"]
WORD += ["--placeholder_token", "<x>", "--initializer_token", "dog"]
REQUIRED = ["--instance_data_dir", "pictures", "--output_dir", "run"]


@pytest.mark.parametrize("preset", sorted(PRESETS.glob("*.toml")), ids=lambda path: path.stem)
def test_every_shipped_preset_loads_and_is_kept(preset: Path) -> None:
    sections = tomllib.loads(preset.read_text())
    assert {"about", "order"} <= sections.pop("preset").keys() <= {"about", "order", "family"}
    prior = sections.get("prior", {})
    asked = ["--class_prompt", "a photo of a dog"] if "class_prompt" not in prior else []
    config = parse(["--preset", preset.stem, *REQUIRED, *asked])
    for section, table in sections.items():
        for key, value in table.items():
            parsed = getattr(getattr(config, section), key)
            assert parsed == (tuple(value) if isinstance(value, list) else value), key


def test_paper_preset_is_table_x() -> None:
    config = parse(["--preset", "paper", *REQUIRED])
    assert config.base.pretrained_model_name_or_path.endswith("/stable-diffusion-v1-5")
    assert config.base.vae == "stabilityai/sd-vae-ft-mse"
    assert (config.adapter.method, config.adapter.rank, config.adapter.alpha) == ("loldu", 32, 32)
    assert set(config.adapter.target_modules) == {"to_k", "to_v", "to_q", "to_out.0"}
    assert config.instance.resolution == 512
    optimization = config.optimization
    assert optimization.learning_rate == 5e-4
    assert (optimization.lr_scheduler, optimization.lr_warmup_steps) == ("constant", 15)
    assert (optimization.max_train_steps, optimization.train_batch_size) == (1000, 1)
    assert (optimization.mixed_precision, optimization.adam_weight_decay) == ("fp16", 0.01)
    assert optimization.seed == 42


def test_the_last_value_wins() -> None:
    config = parse(["--seed", "1", "--preset=paper", *REQUIRED, "--seed", "2", "--seed", "3"])
    assert config.optimization.seed == 3
    assert parse(["--preset", "paper", *REQUIRED]).optimization.seed == 42


def test_a_written_config_is_a_preset_of_the_same_run(
    make_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = make_config(
        "--random_flip", "--no_train_scale", "--rank", "full", "--class_prompt", "a", "b c"
    )
    (tmp_path / "config.toml").write_text(to_toml(config))
    again = parse(["--preset", str(tmp_path / "config.toml")])
    assert dataclasses.replace(again, preset=config.preset) == config


def test_unknown_key_suggests_the_nearest(tmp_path: Path) -> None:
    preset = tmp_path / "mine.toml"
    preset.write_text("[optimization]\nlearning_rat = 1e-3\n")
    with pytest.raises(LoLDUError, match=r"learning_rat; perhaps you meant learning_rate\."):
        parse(["--preset", str(preset), *REQUIRED])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--preset", "papre"], "no preset papre"),
        (
            ["--preset", "nowhere/mine.toml"],
            "mine.toml cannot be read as TOML: there is no such file",
        ),
        (["--learning_rate", "0"], "--learning_rate is 0.0"),
        (["--learning_rate", "nan"], "--learning_rate is nan"),
        (["--resolution", "0"], "--resolution is 0"),
        (["--rank", "0"], "--rank is 0"),
        (["--target_modules"], "--target_modules is empty"),
        (["--with_prior_preservation"], "--class_prompt"),
        (["--validation_steps", "5"], "--validation_prompt"),
        (["--method", "lora", "--max_delta_norm", "1"], "--max_delta_norm is for loldu and svfit;"),
        (["--method", "lora", "--normalize_directions"], "--normalize_directions is for loldu and"),
        (["--method", "lora", "--no_train_scale"], "--no_train_scale is for loldu and svfit;"),
        (["--text_encoder_lr", "1"], "--text_encoder_lr does nothing without --train_text_encoder"),
        (["--word_lr", "1"], "--word_lr does nothing without --placeholder_token"),
        (["--method=dreambooth", "--rank=4"], "--rank is for loldu, svfit and lora; leave it out"),
        (["--method", "svfit", "--pivoting", "complete"], "--pivoting is for loldu; leave it out"),
        (["--method", "dreambooth", "--word-lr", "1"], "--word-lr is for loldu, svfit, lora, t"),
        ([*WORD, "--train_text_encoder"], "leave it out with --method textual_inversion."),
        (["--method", "dreambooth", "--initializer_token", "dog"], "--initializer_token is for l"),
    ],
)
def test_a_mistake_is_one_line_and_exit_status_2(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*REQUIRED, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_unknown_flag_suggests_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        run([*REQUIRED, "--max_train_step", "3"])
    assert exit_info.value.code == 2
    assert "--max_train_steps" in capsys.readouterr().err


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        parse(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    for name in options(Config):
        assert f"--{name}" in text


def test_unused_options_of_a_preset_are_logged_unless_at_their_default(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    argv = ["--preset", "pocket", "--method", "dreambooth", *REQUIRED]
    assert parse(argv).adapter.method == "dreambooth"
    message = "--method dreambooth does not use --rank, --normalize_directions of the preset."
    assert caplog.messages == [message]
    parse([*argv, "--rank", "32", "--no_normalize_directions", "--train_scale"])
    assert caplog.messages == [message]


@pytest.mark.parametrize("given", [["--output-dir=."], ["--output_dir", "."]])
def test_a_training_needs_an_output_folder(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--instance_data_dir", "pictures"]
    assert run(flags) == 2
    error = capsys.readouterr().err
    assert error == "--output_dir is missing: name a folder for the run.\n"
    assert parse([*flags, *given]).run.output_dir == Path()
