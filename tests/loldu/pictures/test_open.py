import os
import struct
from pathlib import Path

import numpy as np
import pillow_heif
import pytest
from PIL import Image, ImageCms

from loldu.errors import LoLDUError
from loldu.pictures import folder
from loldu.pictures.folder import SUFFIXES, list_images
from loldu.pictures.open import image_size, load_image
from tests.damage import ADOBE, ADOBE_GAMMA, ADOBE_RGB, LINEAR_GRAY, SRGB, heic

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


TURNS = {
    1: np.asarray,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}
"""How a viewer turns a picture, by its orientation."""


@pytest.mark.parametrize("orientation", TURNS)
def test_a_heic_of_a_phone_is_turned_once(orientation: int, tmp_path: Path) -> None:
    pixels = np.zeros((64, 128, 3), np.uint8)
    pixels[:32, :64], pixels[32:, 64:] = RED, (0, 255, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = heic(Image.fromarray(pixels), exif=exif.tobytes(), quality=100)
    assert (b"irot" in content or b"imir" in content) == (orientation > 1)  # as phones store it
    (tmp_path / "a.heic").write_bytes(content)
    loaded = np.asarray(load_image(tmp_path / "a.heic"), int)
    expected = TURNS[orientation](pixels)
    assert loaded.shape == expected.shape
    assert np.abs(loaded - expected).mean() < 3  # only the edges of the squares are blurred
    assert image_size(tmp_path / "a.heic") == loaded.shape[1::-1]


@pytest.mark.parametrize("bits", [10, 12])
def test_a_heic_of_10_or_12_bits_keeps_its_brightness(bits: int, tmp_path: Path) -> None:
    deep = np.linspace(0, 65_535, 64, dtype=np.uint16)[None, :, None].repeat(64, 0).repeat(3, 2)
    size, options = (64, 64), {"quality": -1, "chroma": 444}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pillow_heif.options, "SAVE_HDR_TO_12_BIT", bits == 12)
        pillow_heif.encode("RGB;16", size, deep.tobytes(), tmp_path / "a.heif", **options)
    assert pillow_heif.open_heif(tmp_path / "a.heif", False).info["bit_depth"] == bits
    loaded = np.asarray(load_image(tmp_path / "a.heif"), float)
    np.testing.assert_allclose(loaded, deep / 257, atol=3)


def test_every_ending_is_found_and_read_by_its_content(tmp_path: Path) -> None:
    image = Image.new("RGB", (16, 16), RED)
    for suffix in SUFFIXES:
        image.save(tmp_path / f"a{suffix}", format="PNG")
    (tmp_path / "b.jpg").write_bytes(heic(image, quality=100))  # as some programs name it
    image.save(tmp_path / "c.AVIF", quality=100)
    image.save(tmp_path / "d.Tif")
    found = list_images(tmp_path)
    assert len(found) == len(SUFFIXES) + 3
    assert {".heic", ".heif", ".avif", ".tif", ".tiff", ".jfif"} < SUFFIXES
    for path in found:
        np.testing.assert_allclose(load_image(path).getpixel((8, 8)), RED, atol=3)


@pytest.mark.parametrize(
    ("mode", "said"),
    [("F", "F with 32 bits"), ("I", "I with 32 bits"), ("LAB", "LAB with 8 bits")],
)
def test_a_tiff_without_a_known_white_is_refused(mode: str, said: str, tmp_path: Path) -> None:
    Image.new(mode, (8, 8)).save(tmp_path / "a.tif")
    with pytest.raises(LoLDUError, match=rf"a\.tif cannot be read; .* \(a TIFF of {said}; save"):
        load_image(tmp_path / "a.tif")


def test_a_tiff_of_16_bits_keeps_its_gray(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 8), 128 * 257, np.uint16)).save(tmp_path / "a.tif")
    assert load_image(tmp_path / "a.tif").getpixel((4, 4)) == (128, 128, 128)


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


def test_palette_transparency_is_composited_on_white(tmp_path: Path) -> None:
    Image.new("P", (8, 8), 0).save(tmp_path / "a.png", transparency=0)
    assert load_image(tmp_path / "a.png").getpixel((0, 0)) == (255, 255, 255)


def test_transparency_is_composited_on_the_chosen_background(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", background="black").getpixel((0, 0)) == (0, 0, 0)


def test_16_bit_gray_is_scaled_and_rounded(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 300, 25_000, 32_767, 65_406, 65_407, 65_535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.rint(values / 65_535 * 255)
    for channel in load_image(tmp_path / "a.png").split():
        np.testing.assert_array_equal(channel, expected)


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


def encoded(linear: np.ndarray) -> np.ndarray:
    """Light as an 8-bit sRGB value (IEC 61966-2-1)."""
    return 255 * np.where(linear < 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def test_colours_of_another_profile_become_srgb(tmp_path: Path) -> None:
    colours = np.array([[(120, 130, 90), (200, 150, 140), (30, 30, 30), (90, 100, 160)]], np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png", icc_profile=ADOBE_RGB)
    matrices = [np.array([space[name] for name in "rgb"]).T for space in (ADOBE, SRGB)]
    xyz = (colours / 255) ** ADOBE_GAMMA @ matrices[0].T
    expected = encoded(xyz @ np.linalg.inv(matrices[1]).T)
    loaded = np.asarray(load_image(tmp_path / "a.png"))
    np.testing.assert_allclose(loaded, expected, atol=1)
    assert np.abs(expected - colours).max() > 10
    stored = load_image(tmp_path / "a.png", to_srgb=False)
    np.testing.assert_array_equal(np.asarray(stored), colours)


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_gray_of_another_profile_becomes_srgb(mode: str, tmp_path: Path) -> None:
    Image.new(mode, (8, 8), (55, 255)[: len(mode)]).save(
        tmp_path / "a.png", icc_profile=LINEAR_GRAY
    )
    expected = encoded(np.array([55 / 255] * 3))
    np.testing.assert_allclose(load_image(tmp_path / "a.png").getpixel((4, 4)), expected, atol=1)


@pytest.mark.parametrize("palette", [False, True])
def test_a_profile_does_not_change_transparency(palette: bool, tmp_path: Path) -> None:
    colour, expected = (200, 150, 140), {0: WHITE}
    for alpha in (0, 51, 255):
        image = Image.new("RGBA", (8, 8), (*colour, alpha))
        image = image.quantize(2) if palette else image
        image.save(tmp_path / "a.png", icc_profile=ADOBE_RGB)
        loaded = np.asarray(load_image(tmp_path / "a.png"))[4, 4]
        if alpha == 255:
            assert loaded[0] > 210
        expected[alpha] = loaded
    mixed = 0.2 * np.array(expected[255]) + 0.8 * 255
    np.testing.assert_allclose(expected[51], mixed, atol=1.5)


@pytest.mark.parametrize(
    ("mode", "profile"),
    [
        ("RGB", ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()),
        ("RGB", b"broken"),
        ("RGB", ADOBE_RGB[:200]),
        ("RGB", LINEAR_GRAY),
        ("L", ADOBE_RGB),
        ("CMYK", ADOBE_RGB),
    ],
    ids=["srgb", "broken", "cut", "gray-in-rgb", "rgb-in-gray", "rgb-in-cmyk"],
)
def test_srgb_and_unusable_profiles_change_nothing(
    mode: str, profile: bytes, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    image = Image.fromarray(noise).convert("RGB").convert(mode)
    for name, more in (("plain", {}), ("tagged", {"icc_profile": profile})):
        image.save(tmp_path / f"{name}.jpg", quality=95, **more)
    plain, tagged = (load_image(tmp_path / f"{name}.jpg") for name in ("plain", "tagged"))
    assert tagged.tobytes() == plain.tobytes()


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_an_animation_gives_its_first_frame(suffix: str, tmp_path: Path) -> None:
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


def test_a_dangling_link_is_reported(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    (path,) = list_images(tmp_path)
    with pytest.raises(LoLDUError, match=r"a\.png cannot be read; .*No such file"):
        load_image(path)


def test_a_name_that_is_not_unicode_can_be_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.md")).write_text("x")
    messages: list[str] = []
    # Not through logging, for pytest-xdist cannot pass such a name on.
    monkeypatch.setattr(folder.logger, "info", lambda text, *more: messages.append(text % more))
    assert len(list_images(tmp_path)) == 1
    assert "\udcff.md" in messages[0]
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")).write_text("x")
    with pytest.raises(LoLDUError, match=r"The name .*\\xff\.png is not UTF-8; rename the file"):
        list_images(tmp_path)


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
