import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from loldu.pictures.folder import CaptionedImage, list_images, open_pictures
from loldu.pictures.inspect import (
    BLURRY,
    NEARLY_THE_SAME,
    TrainingSetup,
    examine,
    likeness,
    look_alikes,
    report,
    sharpness,
    signature,
    warnings,
)

PROMPT = "a photo of sks dog"
CONCEPTS = sorted(
    path
    for path in (Path(__file__).resolve().parents[3] / "datasets" / "concepts").iterdir()
    if path.is_dir()
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three pictures without a warning, at 64 pixels."""
    folder = tmp_path / "dogs"
    folder.mkdir()
    for seed, name in enumerate("abc"):
        save(folder / f"{name}.png", seed)
    return folder


def save(path: Path, seed: int, size: tuple[int, int] = (96, 80)) -> None:
    """Return blotches of many sizes: thumbnails differ, and details are sharp."""
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
    pictures = open_pictures(folder, [prompt] if prompt else [], "--instance_prompt", 64)
    findings = [examine(picture, 64) for picture in pictures]
    setup = TrainingSetup(64, center_crop, prompt, class_prompt, token)
    return list(warnings(findings, look_alikes(findings), setup))


def test_good_pictures_have_no_warnings(folder: Path) -> None:
    assert warned(folder) == []


def test_measured_facts_of_a_picture(folder: Path) -> None:
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
    assert line.startswith("Blurred at 64 pixels: b.png; the concept learns the blur")


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
    assert bare.startswith("Without a mask, unlike the others: c.png; the concept learns their")


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


def test_a_caption_without_a_background_among_others_is_reported(folder: Path) -> None:
    for name, place in (("a", "on grass"), ("b", ""), ("c", "in a photo of the sea")):
        (folder / f"{name}.txt").write_text(f"a photo of a sks dog {place}")
    (line,) = warned(folder, None)
    assert line.startswith("No background in the caption of b.png, unlike the others")
    assert '"sks dog on grass"' in line
    (folder / "c.txt").write_text("a picture of the sks dog")  # most say nothing: so it is meant
    assert warned(folder, None) == []


@pytest.mark.parametrize(
    ("colors", "caption", "expected"),
    [
        ((250, 245, 252), "", ["All pictures have the same plain background"]),
        ((250, 245, 252), "on a white background", []),
        ((250, 245, 20), "", []),
    ],
)
def test_the_same_plain_background_must_be_named(
    colors: tuple[int, ...], caption: str, expected: list[str], folder: Path
) -> None:
    for seed, color in enumerate(colors):
        path = folder / f"{'abc'[seed]}.png"
        image = Image.new("RGB", (96, 80), (color, color, color))
        with Image.open(path) as subject:
            image.paste(subject.resize((60, 60)), (10 + 5 * seed, 10))
        image.save(path)
    lines = [
        line for line in warned(folder, f"a photo of sks dog {caption}") if "background" in line
    ]
    assert [line[: len(expected[0])] for line in lines] == expected if expected else not lines


def test_a_caption_without_the_token_is_reported(folder: Path) -> None:
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
    pictures = open_pictures(folder, [PROMPT], "--instance_prompt", 64)
    report(pictures, folder, TrainingSetup(64, instance_prompt=PROMPT))
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


def load(folder: Path) -> list[Image.Image]:
    return [Image.open(path).convert("RGB") for path in list_images(folder)]


def copies(image: Image.Image) -> dict[str, Image.Image]:
    width, height = image.size
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=50)
    return {
        "encoded": Image.open(encoded).convert("RGB"),
        "half": image.resize((width // 2, height // 2), Image.Resampling.LANCZOS),
        "double": image.resize((width * 2, height * 2), Image.Resampling.BICUBIC),
        "brighter": ImageEnhance.Brightness(image).enhance(1.2),
        "cropped": image.crop((3, 3, width - 3, height - 3)),
        "cropped above": image.crop((0, 5, width, height)),
        "cropped beside": image.crop((0, 0, width - 4, height)),
    }


@pytest.mark.parametrize("folder", CONCEPTS, ids=lambda folder: folder.name)
def test_copies_are_recognized_and_other_pictures_of_one_concept_are_not(folder: Path) -> None:
    pictures = load(folder)
    own = [signature(picture) for picture in pictures]
    assert len(own) == 5
    for first, second in combinations(own, 2):
        assert likeness(first, second) < NEARLY_THE_SAME
    for picture, ours in list(zip(pictures, own, strict=True))[:2]:
        for name, copy in copies(picture).items():
            theirs = signature(copy)
            assert likeness(ours, theirs) > NEARLY_THE_SAME, name
            assert likeness(theirs, ours) == likeness(ours, theirs)


def test_likeness_is_the_correlation_of_thumbnails() -> None:
    """A picture, its negative and itself, for which no crop fits better."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture, negative = Image.fromarray(noise), Image.fromarray(255 - noise)
    assert likeness(signature(picture), signature(picture)) == pytest.approx(1, abs=1e-5)
    ours, theirs = signature(picture)[-1], signature(negative)[-1]
    assert np.corrcoef(ours, theirs)[0, 1] == pytest.approx(ours @ theirs, abs=1e-3)
    assert ours @ theirs < -0.99
    flat = signature(Image.new("RGB", (64, 64), "red"))
    assert likeness(flat, flat) == 0  # nothing to tell it by


@pytest.mark.parametrize("folder", CONCEPTS, ids=lambda folder: folder.name)
def test_blurred_pictures_are_distinguished_from_sharp_ones(folder: Path) -> None:
    for picture in load(folder):
        assert sharpness(picture) > 5 * BLURRY
        enlarged = picture.resize((512, 512), Image.Resampling.BICUBIC)
        assert sharpness(enlarged) < BLURRY
        assert sharpness(picture.filter(ImageFilter.GaussianBlur(4))) < BLURRY


def test_a_subject_in_focus_before_a_blurred_background_is_sharp() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (128, 128), dtype=np.uint8)
    sharp = Image.fromarray(noise).convert("RGB")
    blurred = sharp.filter(ImageFilter.GaussianBlur(6))
    assert sharpness(blurred) < BLURRY
    blurred.paste(sharp.crop((40, 40, 90, 90)), (40, 40))
    assert sharpness(blurred) > BLURRY


def test_sharpness_is_the_laplacian_s_mean_square_where_it_is_the_same_everywhere() -> None:
    gray = np.indices((18, 18)).sum(axis=0) % 2 * 100
    image = Image.fromarray(gray.astype(np.uint8)).convert("RGB")
    assert sharpness(image) == pytest.approx(400.0**2)  # +-4 times 100 at every pixel
    assert sharpness(Image.new("RGB", (8, 8), "red")) == 0
