"""`python -m eval calibrate`: real pictures against each other, no picture against itself."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from eval.__main__ import run
from eval.encoders import load as loading
from eval.encoders.encoder import Encoder, TextEncoder
from eval.encoders.load import load_clip, load_dino
from tests.eval.noise import save_noise

PUBLISHED = "published for DreamBooth's dataset"


@pytest.fixture
def subjects(tmp_path: Path) -> dict[str, list[Path]]:
    """Three pictures of one subject, and two of another."""
    return {
        "cup": save_noise(tmp_path / "real" / "cup", ["0.png", "1.png", "2.png"]),
        "dog": save_noise(tmp_path / "real" / "dog", ["0.png", "1.png"], 1),
    }


@pytest.fixture
def flags(subjects: dict[str, list[Path]], scoring: list[str], tmp_path: Path) -> list[str]:
    real = subjects["cup"][0].parent.parent
    out = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    return ["calibrate", "--real", str(real), *out, *scoring]


def result(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))


def test_every_pair_but_a_picture_with_itself(
    flags: list[str],
    subjects: dict[str, list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    clip_folder: Path,
    dino_folder: Path,
) -> None:
    assert run(flags) == 0
    table = capsys.readouterr().out
    message = result(tmp_path)
    for metric, model in (
        ("dino", load_dino(str(dino_folder))),
        ("clip_i", load_clip(str(clip_folder))),
    ):
        means = []
        for name, paths in subjects.items():
            rows = model.encode_images([Image.open(path) for path in paths])
            cosines = [
                torch.cosine_similarity(a, b, dim=0).item()
                for i, a in enumerate(rows)
                for j, b in enumerate(rows)
                if i != j
            ]
            means.append(sum(cosines) / len(cosines))
            assert message["subjects"][name][metric] == pytest.approx(means[-1], abs=1e-5)
            assert f"{means[-1]:.3f}" in table
        assert message["scores"][metric]["mean"] == pytest.approx(sum(means) / 2, abs=1e-5)
    # These numbers are not those of the published models.
    assert PUBLISHED not in table
    assert message["published"] == {}


def test_published_numbers_stand_beside_those_of_the_published_models(
    flags: list[str],
    clip_folder: Path,
    dino_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def clip(name: str, device: str) -> TextEncoder:
        assert name == "open_clip:ViT-B-32-quickgelu/openai"
        return load_clip(str(clip_folder), device)

    def dino(name: str, device: str) -> Encoder:
        assert name == "timm:vit_small_patch16_224.dino"
        return load_dino(str(dino_folder), device)

    monkeypatch.setattr(loading, "load_clip", clip)
    monkeypatch.setattr(loading, "load_dino", dino)
    models = ("--clip", str(clip_folder), "--dino", str(dino_folder))
    assert run([flag for flag in flags if flag not in models]) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if PUBLISHED in line)
    assert line.split("|")[3:5] == [cell for cell in line.split("|") if "0." in cell]
    assert [float(cell) for cell in line.split("|")[3:5]] == [0.774, 0.885]
    assert result(tmp_path)["published"] == {"dino": 0.774, "clip_i": 0.885}
    assert "published for DreamBooth&#39;s dataset" in (tmp_path / "out.html").read_text("utf-8")


def test_a_single_picture_is_left_out(
    flags: list[str],
    subjects: dict[str, list[Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    subjects["dog"][0].write_bytes(b"")
    assert run(flags) == 2
    message = capsys.readouterr().err.strip()
    assert str(subjects["dog"][0]) in message
    assert "\n" not in message
    assert run([*flags, "--skip_bad"]) == 0
    assert list(result(tmp_path)["subjects"]) == ["cup"]
    assert result(tmp_path)["skipped"] == {"dog/0.png": "unreadable"}
    assert "Left out dog: one picture" in caplog.text
    capsys.readouterr()
    subjects["cup"][0].unlink()
    subjects["cup"][1].unlink()
    assert run([*flags, "--skip_bad", "--overwrite"]) == 2
    assert "has two pictures to compare" in capsys.readouterr().err
