import io
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from loldu.pictures.folder import list_images
from loldu.pictures.measures import BLURRY, NEARLY_THE_SAME, likeness, sharpness, signature

CONCEPTS = sorted(
    path
    for path in (Path(__file__).resolve().parents[3] / "datasets" / "concepts").iterdir()
    if path.is_dir()
)


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
    """Without a crop that does better: a picture and its negative, and the picture itself."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture, negative = Image.fromarray(noise), Image.fromarray(255 - noise)
    assert likeness(signature(picture), signature(picture)) == pytest.approx(1, abs=1e-5)
    ours, theirs = signature(picture)[-1], signature(negative)[-1]
    assert np.corrcoef(ours, theirs)[0, 1] == pytest.approx(ours @ theirs, abs=1e-3)
    assert ours @ theirs < -0.99
    flat = signature(Image.new("RGB", (64, 64), "red"))
    assert likeness(flat, flat) == 0  # nothing to tell it by


@pytest.mark.parametrize("folder", CONCEPTS, ids=lambda folder: folder.name)
def test_blurred_pictures_are_told_from_sharp_ones(folder: Path) -> None:
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
