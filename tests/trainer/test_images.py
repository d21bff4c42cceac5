import os
import random
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from trainer import instances
from trainer.errors import TrainerError
from trainer.images import load_image
from trainer.instances import list_images

RED = (255, 0, 0)
WHITE = (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (20, 10))
    image.paste(RED, (0, 0, 10, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    image.save(tmp_path / "a.png", exif=exif)
    upright = load_image(tmp_path / "a.png")
    assert upright.size == (10, 20)
    assert upright.getpixel((5, 2)) == RED
    assert upright.getpixel((5, 17)) == (0, 0, 0)


@pytest.mark.parametrize(
    ("image", "suffix", "expected"),
    [
        (Image.new("RGBA", (8, 8), (0, 0, 0, 0)), "png", (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (255, 0, 0, 255)), "webp", RED),
        (Image.new("LA", (8, 8), (0, 0)), "png", (255, 255, 255)),
        (Image.new("L", (8, 8), 128), "png", (128, 128, 128)),
        (Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "jpg", RED),
        (Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)), "png", (128, 128, 128)),
        (Image.new("1", (8, 8), 1), "bmp", (255, 255, 255)),
    ],
    ids=["clear", "opaque", "gray-alpha", "gray", "cmyk", "gray-16-bit", "bilevel"],
)
def test_every_mode_becomes_rgb(
    image: Image.Image, suffix: str, expected: tuple[int, int, int], tmp_path: Path
) -> None:
    image.save(tmp_path / f"a.{suffix}", quality=100)
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert loaded.mode == "RGB"
    pixel = np.asarray(loaded)[4, 4]
    np.testing.assert_allclose(pixel, expected, atol=3)  # JPEG and WebP round


def test_palette_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("P", (8, 8), 0).save(tmp_path / "a.png", transparency=0)
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_transparency_is_laid_on_the_background_that_is_asked_for(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", background="black").getpixel((0, 0)) == (0, 0, 0)


def test_16_bit_gray_with_a_transparent_value_keeps_its_gray(tmp_path: Path) -> None:
    gray = np.full((8, 8), 128 * 257, np.uint16)
    Image.fromarray(gray).save(tmp_path / "a.png", transparency=0)
    np.testing.assert_allclose(load_image(tmp_path / "a.png").getpixel((4, 4)), 128, atol=1)


def test_a_palette_with_several_degrees_of_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (8, 8), 0)
    image.putpalette([*RED, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png", transparency=bytes([255, 0]))
    loaded = load_image(tmp_path / "a.png")
    assert loaded.getpixel((0, 0)) == RED
    assert loaded.getpixel((1, 0)) == WHITE


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_of_an_animation_the_first_frame_is_taken(suffix: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, "blue", "lime")]
    path = tmp_path / f"a.{suffix}"
    frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True)
    with Image.open(path) as file:
        assert getattr(file, "n_frames", 1) == 3
    assert list_images(tmp_path) == [path]
    assert load_image(path).getpixel((4, 4)) == RED


def test_names_of_all_kinds(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    image = Image.new("RGB", (8, 8), RED)
    image.save(tmp_path / "elsewhere", format="PNG")
    names = ["Ünïcode 猫.PNG", "with space.JPeG", "zz[0].BMP"]
    for name in names:
        image.save(tmp_path / "folder" / name)
    (tmp_path / "folder" / "link.webp").symlink_to(tmp_path / "elsewhere")
    found = list_images(tmp_path / "folder")
    assert sorted(path.name for path in found) == sorted([*names, "link.webp"])
    assert all(load_image(path).size == (8, 8) for path in found)


def test_a_link_to_nothing_is_told_and_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (path,) = list_images(tmp_path)
    with pytest.raises(TrainerError, match=r"a\.png cannot be read; .*No such file"):
        load_image(path)


def test_a_name_that_is_no_text_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.md")).write_text("x")
    told: list[str] = []
    # Not through logging, for pytest-xdist cannot pass such a name on.
    monkeypatch.setattr(instances.logger, "info", lambda text, *more: told.append(text % more))
    assert len(list_images(tmp_path)) == 1
    assert "\udcff.md" in told[0]


def test_a_damaged_exif_block_does_no_harm(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a camera with a long name"
    image = Image.new("RGB", (20, 10), RED)
    image.save(tmp_path / "a.jpg", exif=exif)
    content = bytearray((tmp_path / "a.jpg").read_bytes())
    at = content.index(b"Exif\0\0") + 6
    struct.pack_into(">H", content, at + 8, 999)  # a directory longer than the block
    (tmp_path / "a.jpg").write_bytes(content)
    assert load_image(tmp_path / "a.jpg").size == (20, 10)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "gif"])
def test_damage_of_any_kind_is_one_sentence_or_none(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = 6
    noise = np.random.default_rng(0).integers(0, 255, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **({"exif": exif} if suffix in ("jpg", "webp") else {}))
    whole = path.read_bytes()
    rng = random.Random(0)
    told = []
    for _ in range(200):
        damaged = bytearray(whole[: rng.randrange(len(whole) + 1)] if rng.random() < 0.3 else whole)
        for _ in range(min(len(damaged), 3)):
            damaged[rng.randrange(min(len(damaged), 200))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_image(path)
        except TrainerError as error:
            told.append(str(error))
    assert len(told) > 50
    assert all(line.startswith(f"The picture {path} cannot be read; replace or") for line in told)
    assert not any("\n" in line for line in told)
