import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from loldu.pictures.folder import CaptionedImage
from trainer import train_dreambooth_loldu
from trainer.__main__ import run
from trainer.options.config import InstanceConfig, PriorConfig
from trainer.training.doctor import examine, likely_token_and_class, look_alikes, report, warnings
from trainer.training.instances import find_instances

PROMPT = "a photo of sks dog"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures that nothing speaks against, at 64 pixels."""
    folder = tmp_path / "dogs"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        save(folder / f"{name}.png", seed)
    return folder


def save(path: Path, seed: int, size: tuple[int, int] = (96, 80)) -> None:
    """Blotches of many sizes, so that thumbnails differ and details are sharp."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 200, (5, 6, 3), dtype=np.uint8)
    blotches = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.NEAREST))
    Image.fromarray(blotches + rng.integers(0, 50, blotches.shape, dtype=np.uint8)).save(path)


def warned(
    folder: Path,
    prompt: str | None = PROMPT,
    class_prompt: tuple[str, ...] = (),
    center_crop: bool = True,
    token: str | None = None,
) -> list[str]:
    options = InstanceConfig(folder, prompt, token, resolution=64, center_crop=center_crop)
    findings = [examine(picture, 64) for picture in find_instances(options)]
    return list(warnings(findings, look_alikes(findings), options, PriorConfig(True, class_prompt)))


def test_good_pictures_are_not_complained_of(folder: Path) -> None:
    assert warned(folder) == []


def test_what_is_measured(folder: Path) -> None:
    mask = Image.new("L", (96, 80))
    mask.paste(255, (0, 0, 48, 80))  # the middle square begins at 8
    mask.save(folder / "a-masklabel.png")
    finding = examine(
        CaptionedImage(folder / "a.png", PROMPT, 1, folder / "a-masklabel.png"), resolution=160
    )
    assert finding.size == (96, 80)
    assert finding.kept == pytest.approx(80 / 96)
    assert finding.enlarged == 2
    assert finding.marked == pytest.approx(0.5)
    assert finding.marked_kept == pytest.approx(40 / 48)


def test_too_few(folder: Path) -> None:
    (folder / "a.png").unlink()
    (line,) = warned(folder)
    assert line.startswith("Only 2 pictures: 3 to 5, from several sides")


def test_near_duplicates_are_grouped(folder: Path) -> None:
    with Image.open(folder / "a.png") as image:
        image.save(folder / "copy.jpg", quality=60)
        image.resize((192, 160)).save(folder / "large.webp")
    with Image.open(folder / "c.png") as image:
        image.crop((3, 2, 96, 80)).save(folder / "d.bmp")
    (line,) = warned(folder)
    assert "same picture: a.png = copy.jpg = large.webp; c.png = d.bmp; keep one" in line


def test_blur(folder: Path) -> None:
    with Image.open(folder / "b.png") as image:
        image.filter(ImageFilter.GaussianBlur(5)).save(folder / "b.png")
    (line,) = warned(folder)
    assert line.startswith("Blurred at 64 pixels: b.png; blur is learned")


def test_oblong_pictures(folder: Path) -> None:
    save(folder / "d.png", 9, (200, 80))
    (line,) = warned(folder)
    assert line.startswith("Very oblong: d.png (40% kept); crop to the subject yourself, or use --")
    assert "--no_center_crop" not in warned(folder, center_crop=False)[0]


def test_small_pictures(folder: Path) -> None:
    save(folder / "d.png", 9, (48, 40))
    (line,) = warned(folder)
    assert line.startswith("Enlarged, so without fine detail: d.png (1.6 x); use larger ones")


def test_masks_that_are_missing_or_cut(folder: Path) -> None:
    for name, left in (("a", 0), ("b", 78)):  # the middle square goes from 8 to 88
        mask = Image.new("L", (96, 80))
        mask.paste(255, (left, 10, left + 10, 70))
        mask.save(folder / f"{name}-masklabel.png")
    cut, bare = warned(folder)
    assert cut.startswith("The crop cuts into what the mask marks: a.png (20% kept); crop to the")
    assert bare.startswith("Without a mask, unlike the others: c.png; their backgrounds")


@pytest.mark.parametrize(
    ("captions", "prompt", "class_prompt", "expected"),
    [
        ({"b": "a sks dog at sea"}, PROMPT, (), []),
        ({"b": "a dog at sea"}, PROMPT, (), ['The token "sks" is missing in the caption of b.png']),
        ({"b": "sks at sea"}, PROMPT, (), ['The class "dog" is missing in the caption of b.png']),
        (
            {"a": "sks dog on grass", "b": "sks dog at sea", "c": "the dog"},
            None,
            (),
            ['The token "sks" is missing in the caption of c.png'],
        ),
        ({}, "a photo of sks", (), ['No class follows sks in "a photo of sks"']),
        ({}, "a photo of a dog", ("a photo of a dog",), ['no rare token in "a photo of a dog"']),
        ({}, "a red sks dog", ("a red dog", "a cat"), []),
        (
            {"b": "a sks at sea", "c": "a sks bear"},
            "a sks teddy bear",
            ("a teddy bear",),
            ['The class "teddy bear" is missing in the caption of b.png'],
        ),
        (
            {"b": "the old sks dog"},
            "the old Tom dog",
            ("the dog",),
            ['The token "old Tom" is missing in the caption of b.png'],
        ),
    ],
)
def test_captions(
    captions: dict[str, str],
    prompt: str | None,
    class_prompt: tuple[str, ...],
    expected: list[str],
    folder: Path,
) -> None:
    for name, caption in captions.items():
        (folder / f"{name}.txt").write_text(caption)
    lines = warned(folder, prompt, class_prompt)
    assert len(lines) == len(expected)
    for line, beginning in zip(lines, expected, strict=True):
        assert beginning in line


@pytest.mark.parametrize(
    ("prompt", "class_prompts", "expected"),
    [
        ("a photo of sks dog", [], ("sks", "dog")),
        ("A photo of a [V] teddy-bear, on grass", [], ("v", "teddy-bear")),
        ("a red sks dog", ["a red dog"], ("sks", "dog")),
        ("sks red dog", ["a photo of a dog"], ("sks red", "dog")),  # as in the concept file
        ("sks dog in red", ["a photo of a dog"], ("sks", "dog")),
        ("a sks teddy bear", ["a teddy bear", "a car"], ("sks", "teddy bear")),
        ("a photo of a 猫", [], ("猫", None)),
        ("a photo of the", [], (None, None)),
    ],
)
def test_token_and_class(
    prompt: str, class_prompts: list[str], expected: tuple[str | None, str | None]
) -> None:
    assert likely_token_and_class(prompt, class_prompts) == expected


@pytest.mark.parametrize(
    ("prompt", "token", "expected"),
    [
        ("a red Sks dog", "Sks", ("Sks", "dog")),
        ("a photo of [V] dog, asleep", "[V]", ("[V]", "dog asleep")),
        ("a photo of a sks", "sks", ("sks", None)),
        ("a dog", "sks", ("sks", None)),
    ],
)
def test_a_given_token_is_not_guessed(
    prompt: str, token: str, expected: tuple[str | None, str | None]
) -> None:
    assert likely_token_and_class(prompt, ["a dog"], token) == expected


def test_the_token_that_was_given_is_missed(folder: Path) -> None:
    (folder / "b.txt").write_text("a red dog")
    (line,) = warned(folder, "a red sks dog", token="sks")
    assert line.startswith('The token "sks" is missing in the caption of b.png')


def test_the_table_has_a_row_for_each_picture_and_the_warnings_a_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    save(folder / "[red]d.png", 9, (200, 80))
    Image.new("L", (96, 80), 255).save(folder / "b-masklabel.png")
    (folder / "metadata.jsonl").write_text('{"file_name": "c.png", "repeats": 3}')
    options = InstanceConfig(folder, PROMPT, resolution=64)
    report(find_instances(options), options, PriorConfig())
    written = capsys.readouterr()
    assert written.out == ""
    heading, _, *lines = written.err.splitlines()
    assert heading == f"4 pictures at 64 pixels, from {folder}"
    rows = [line.split() for line in lines]
    assert rows[0][:6] == ["[red]d.png", "200", "x", "80", "40%", "0.8"]
    assert rows[2][:6] == ["b.png", "96", "x", "80", "83%", "0.8"]
    assert rows[2][8:] == ["100%", *PROMPT.split()]
    assert rows[3][:2] == ["c.png", "x3"]
    assert [line[:10] for line in lines[5:]] == ["! Very obl", "! Without "]


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
    assert "Nothing speaks against them." in capsys.readouterr().err
    assert not list((tmp_path / "here").iterdir())
    (folder / "a.png").write_bytes(b"x")
    (folder / "c.png").write_bytes(b"x")
    assert run(argv) == 2
    told = capsys.readouterr().err.splitlines()
    assert ["a.png cannot be read" in told[0], "c.png cannot be read" in told[1]] == [True, True]
    assert len(told) == 2


def test_every_concept_is_looked_at_and_all_their_mistakes_are_told(
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
    told = capsys.readouterr().err
    assert [line for line in told.splitlines() if "pictures at" in line] == [
        f"3 pictures at 64 pixels, from {folder}",
        f"3 pictures at 64 pixels, from {other}",
    ]
    assert "! The word <cat> is missing in the caption of b.png: add it." in told
    assert told.count("! ") == 1
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


def test_a_run_looks_first_and_a_resumed_run_does_not_look_again(
    flags: list[str], capsys: pytest.CaptureFixture[str], make_config: Callable[..., object]
) -> None:
    more = ["--checkpointing_steps", "1"]
    assert run([*flags, *more, "--max_train_steps", "1"]) == 0
    assert "3 pictures at 16 pixels" in capsys.readouterr().err
    assert run([*flags, *more, "--max_train_steps", "2", "--resume", "latest"]) == 0
    assert "3 pictures at 16 pixels" not in capsys.readouterr().err
