"""`python -m eval score`, on folders of noise and tiny scoring models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eval.__main__ import run
from eval.extractors import load_clip, load_dino


def save_pictures(folder: Path, count: int, seed: int) -> list[Image.Image]:
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
    images = [Image.fromarray(picture) for picture in pixels]
    for index, image in enumerate(images):
        image.save(folder / f"{index:02}.png")
    return images


@pytest.fixture
def flags(clip_folder: Path, dino_folder: Path, tmp_path: Path) -> list[str]:
    return [
        "score",
        *("--generated", str(tmp_path / "generated"), "--real", str(tmp_path / "real")),
        *("--clip", str(clip_folder), "--dino", str(dino_folder), "--device", "cpu"),
        *("--json", str(tmp_path / "scores.json")),
    ]


def scores(tmp_path: Path) -> dict:
    return json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))


def mean_cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return torch.cosine_similarity(a[:, None], b[None], dim=-1).mean().item()


def test_one_subject(
    flags: list[str],
    clip_folder: Path,
    dino_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    generated = save_pictures(tmp_path / "generated", 3, seed=0)
    real = save_pictures(tmp_path / "real", 2, seed=1)
    (tmp_path / "prompts").write_text("a sks toy\na sks toy on sand\nsks toy\n", encoding="utf-8")
    assert run([*flags, "--prompts", str(tmp_path / "prompts"), "--token", "sks"]) == 0
    clip, dino = load_clip(str(clip_folder)), load_dino(str(dino_folder))
    seen, asked = clip.encode_images(generated), ["a toy", "a toy on sand", "toy"]
    expected = {
        "dino": mean_cosine(dino.encode_images(generated), dino.encode_images(real)),
        "clip_i": mean_cosine(seen, clip.encode_images(real)),
        "clip_t": torch.cosine_similarity(seen, clip.encode_texts(asked)).mean().item(),
    }
    assert scores(tmp_path)["scores"] == pytest.approx(expected, abs=1e-5)
    assert json.loads(capsys.readouterr().out) == scores(tmp_path)


def test_subjects_are_matched_by_name_and_count_the_same(flags: list[str], tmp_path: Path) -> None:
    for seed, (name, count) in enumerate({"cup": 1, "dog": 3}.items()):
        save_pictures(tmp_path / "generated" / name, count, seed)
        save_pictures(tmp_path / "real" / name, 2, seed + 10)
    assert run(flags) == 0
    result = scores(tmp_path)
    cup, dog = result["subjects"]["cup"], result["subjects"]["dog"]
    assert (cup["pictures"], dog["pictures"]) == (1, 3)
    assert result["scores"]["dino"] == pytest.approx((cup["dino"] + dog["dino"]) / 2)
    assert "clip_t" not in result["scores"]


def test_captions_beside_the_pictures_are_their_prompts(flags: list[str], tmp_path: Path) -> None:
    save_pictures(tmp_path / "generated", 2, seed=0)
    save_pictures(tmp_path / "real", 2, seed=1)
    assert run([*flags, "--prompt", "a red car"]) == 0
    from_flag = scores(tmp_path)["scores"]["clip_t"]
    for name in ("00.txt", "01.txt"):
        (tmp_path / "generated" / name).write_text("a red car\n", encoding="utf-8")
    assert run([*flags, "--overwrite"]) == 0
    assert scores(tmp_path)["scores"]["clip_t"] == from_flag


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--prompts", "{tmp}/one_line"], "1 lines for the 2 pictures"),
        (["--prompts", "{tmp}/nowhere"], "is not a file"),
        (["--generated", "{tmp}/nowhere"], "nowhere"),
        (["--generated", "{tmp}/subjects"], "has no folder"),
        (["--json", "{tmp}/one_line"], "--overwrite"),
        (["--clip", "open_clip:ViT-B-32-quickgelu/nosuch"], "--clip"),
    ],
)
def test_mistakes_are_told_in_one_line(
    flags: list[str],
    more: list[str],
    told: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_pictures(tmp_path / "generated", 2, seed=0)
    save_pictures(tmp_path / "real", 2, seed=1)
    save_pictures(tmp_path / "subjects" / "cup", 1, seed=2)
    (tmp_path / "one_line").write_text("a toy\n", encoding="utf-8")
    assert run([*flags, *(text.format(tmp=tmp_path) for text in more)]) == 2
    message = capsys.readouterr().err.strip()
    assert told in message
    assert "\n" not in message
