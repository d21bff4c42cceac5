import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer import train_dreambooth_loldu
from trainer.__main__ import run

PROMPT = "a photo of sks dog"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures without a warning, at 64 pixels."""
    folder = tmp_path / "dogs"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        rng = np.random.default_rng(seed)
        pixels = rng.integers(0, 250, (80, 96, 3), dtype=np.uint8)
        coarse = Image.fromarray(pixels[:5, :6]).resize((96, 80), Image.Resampling.NEAREST)
        Image.blend(coarse, Image.fromarray(pixels), 0.2).save(folder / f"{name}.png")
    return folder


def test_doctor_only_needs_no_base_and_writes_nothing(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train_dreambooth_loldu, "main", pytest.fail)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    argv = [
        *("--doctor_only", "--preset", "paper", "--instance_data_dir", str(folder)),
        *("--instance_prompt", PROMPT, "--resolution", "64"),
    ]
    assert run(argv) == 0
    assert "These pictures look fine." in capsys.readouterr().err
    assert not list((tmp_path / "here").iterdir())
    (folder / "a.png").write_bytes(b"x")
    (folder / "c.png").write_bytes(b"x")
    assert run(argv) == 2
    message = capsys.readouterr().err.splitlines()
    assert ["a.png cannot be read" in message[0], "c.png cannot be read" in message[1]] == [
        True,
        True,
    ]
    assert len(message) == 2


def test_all_concepts_are_inspected_and_all_mistakes_reported(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "cats"
    shutil.copytree(folder, other)
    toml = tmp_path / "concepts.toml"
    toml.write_text(
        f'[dog]\ninstance_data_dir = "{folder}"\ninstance_prompt = "a photo of sks dog"\n'
        f'[cat]\ninstance_data_dir = "{other}"\ninstance_prompt = "a photo of a <cat>"\n'
        'placeholder_token = "<cat>"\ninitializer_token = "cat"\n'
    )
    (other / "b.txt").write_text("a photo of a cat")
    argv = ["--doctor_only", "--concepts", str(toml), "--resolution", "64"]
    assert run(argv) == 0
    message = capsys.readouterr().err
    assert [line for line in message.splitlines() if "pictures at" in line] == [
        f"3 pictures at 64 pixels, from {folder}",
        f"3 pictures at 64 pixels, from {other}",
    ]
    assert "! The word <cat> is missing in the caption of b.png: add it." in message
    assert message.count("! ") == 1
    for broken in (folder, other):
        (broken / "a.png").write_bytes(b"x")
    assert run(argv) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"{folder}/a.png cannot be read" in first
    assert f"{other}/a.png cannot be read" in second


def test_own_class_pictures_are_opened_before_the_base_is_loaded(
    folder: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "b.png").write_bytes(b"x")
    own = ["--with_prior_preservation", "--class_data_dir", str(folder), "--class_prompt", "a dog"]
    assert run([*flags, *own, "--pretrained_model_name_or_path", "./nowhere"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "b.png cannot be read" in line


def test_a_run_inspects_pictures_first_and_a_resumed_run_does_not(
    flags: list[str], capsys: pytest.CaptureFixture[str], make_config: Callable[..., object]
) -> None:
    more = ["--checkpointing_steps", "1"]
    assert run([*flags, *more, "--max_train_steps", "1"]) == 0
    assert "3 pictures at 16 pixels" in capsys.readouterr().err
    assert run([*flags, *more, "--max_train_steps", "2", "--resume", "latest"]) == 0
    assert "3 pictures at 16 pixels" not in capsys.readouterr().err
