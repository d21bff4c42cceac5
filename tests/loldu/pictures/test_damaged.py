"""Pictures whose metadata is damaged, huge or unusual, and whose pixels are good."""

import io
import os
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFile

from loldu.errors import LoLDUError
from loldu.pictures import open as opener
from loldu.pictures.open import image_size, load_image, stored_text, upright
from tests.damage import (
    ADOBE_RGB,
    chunk,
    exif_block,
    gray_png,
    saved,
    with_chunk,
    with_exif,
)

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (24, 20, 3), dtype=np.uint8))
PNG, JPEG = saved(NOISE, "PNG"), saved(NOISE, "JPEG", quality=95)
SIDEWAYS = (0x0112, 3, 1, 6 << 16)
"""The tag Orientation, a short: to be turned clockwise."""
PADDING = b"\0".join(b"a workflow" for _ in range(300_000))


def written(folder: Path, content: bytes) -> Path:
    path = folder / "a.png"
    path.write_bytes(content)
    return path


def decoded(content: bytes) -> np.ndarray:
    """The pixels as Pillow reads them."""
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


@pytest.mark.parametrize(
    ("content", "turned"),
    [
        (with_chunk(PNG, chunk(b"eXIf", b"garbage")), False),
        (with_chunk(PNG, chunk(b"eXIf", b"MM\0*\0\0")), False),
        (with_chunk(PNG, chunk(b"tEXt", b"Raw profile type exif\0\nexif\n4\nno hex")), False),
        (with_exif(JPEG, b"Exif\0\0garbage"), False),
        # XResolution as text, and SubfileType as a negative number.
        (with_exif(JPEG, exif_block(SIDEWAYS, (0x011A, 2, 4, 0x37320000))), True),
        (with_exif(JPEG, exif_block(SIDEWAYS, (0x00FE, 9, 1, -1))), True),
        (with_chunk(PNG, chunk(b"eXIf", exif_block(SIDEWAYS, (0x00FE, 9, 1, -1))[6:])), True),
    ],
    ids=["exif", "cut", "profile", "jpeg", "text-for-number", "negative", "negative-png"],
)
def test_damaged_exif_leaves_the_pixels_and_a_readable_orientation(
    content: bytes, turned: bool, tmp_path: Path
) -> None:
    stored = decoded(content)
    expected = np.rot90(stored, -1) if turned else stored
    loaded = load_image(written(tmp_path, content))
    np.testing.assert_array_equal(np.asarray(loaded), expected)
    assert upright(loaded) is loaded  # nothing turns it once more
    of_library = upright(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(np.asarray(of_library), expected)
    assert upright(of_library) is of_library


@pytest.mark.parametrize("before", [b"IDAT", b"IEND"])
@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(PADDING)),
        chunk(b"iTXt", b"workflow\0\1\0\0\0" + zlib.compress(PADDING)),
        chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(100 * 2**20))),
        chunk(b"tEXt", b"workflow\0" + bytes(65 * 2**20)),
        chunk(b"iCCP", b"ICC\0\0" + zlib.compress(bytes(100 * 2**20))),
        chunk(b"pHYs", b"abc"),
    ],
    ids=["text", "international", "bomb", "large", "profile", "short"],
)
def test_extra_chunks_of_any_size_do_no_harm(extra: bytes, before: bytes, tmp_path: Path) -> None:
    content = with_chunk(PNG, extra, before)
    path = written(tmp_path, content)
    np.testing.assert_array_equal(np.asarray(load_image(path)), np.asarray(NOISE))
    assert image_size(path) == NOISE.size


@pytest.mark.parametrize(
    "extra",
    [(b"tEXt", b"a\0b"), (b"gAMA", b"\0\0\1\0"), (b"tRNS", b"\0\0\0\0\0\0"), (b"prVt", b"x")],
    ids=["text", "gamma", "transparency", "private"],
)
def test_a_wrong_checksum_of_an_extra_chunk_does_no_harm(
    extra: tuple[bytes, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = NOISE.copy()
    image.putpixel((3, 3), (0, 0, 0))
    content = with_chunk(saved(image, "PNG"), chunk(*extra, checksum=7))
    loaded = load_image(written(tmp_path, content))
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    pillow = Image.open(io.BytesIO(content)).convert("RGBA")
    expected = Image.alpha_composite(Image.new("RGBA", pillow.size, "white"), pillow)
    np.testing.assert_array_equal(np.asarray(loaded), np.asarray(expected)[..., :3])


@pytest.mark.parametrize("name", [b"IHDR", b"PLTE"])
def test_a_wrong_checksum_of_the_picture_itself_is_refused(name: bytes, tmp_path: Path) -> None:
    content = bytearray(saved(NOISE.quantize(8), "PNG"))
    content[content.index(name) + 6] ^= 1
    with pytest.raises(LoLDUError, match=r"a\.png cannot be read"):
        load_image(written(tmp_path, bytes(content)))


def test_orientation_and_profile_are_kept_beside_a_huge_text(tmp_path: Path) -> None:
    plain = saved(NOISE, "PNG", icc_profile=ADOBE_RGB)
    turning = chunk(b"eXIf", exif_block(SIDEWAYS)[6:])
    huge = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(PADDING))
    expected = np.rot90(np.asarray(load_image(written(tmp_path, plain))), -1)
    content = with_chunk(with_chunk(plain, turning), huge)
    np.testing.assert_array_equal(np.asarray(load_image(written(tmp_path, content))), expected)
    text = b"\nexif\n99\n" + exif_block(SIDEWAYS).hex().encode()
    turning = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text))
    content = with_chunk(with_chunk(plain, turning), huge)
    np.testing.assert_array_equal(np.asarray(load_image(written(tmp_path, content))), expected)


def test_a_profile_of_more_than_a_megabyte_is_applied(tmp_path: Path) -> None:
    small = load_image(written(tmp_path, saved(NOISE, "PNG", icc_profile=ADOBE_RGB)))
    large = ADOBE_RGB + np.random.default_rng(0).bytes(3 * 2**19)
    content = with_chunk(PNG, chunk(b"iCCP", b"ICC\0\0" + zlib.compress(large)))
    loaded = np.asarray(load_image(written(tmp_path, content)))
    np.testing.assert_array_equal(loaded, np.asarray(small))
    assert (loaded != np.asarray(NOISE)).any()


@pytest.mark.parametrize(
    ("depth", "channels", "clear"),
    [
        *((1, 1, 1), (2, 1, 1), (2, 1, 3), (4, 1, 5), (8, 1, 77), (8, 3, 200)),
        *((16, 1, 0), (16, 1, 300), (16, 1, 65_535), (16, 3, 0x1234)),
    ],
)
def test_the_transparent_colour_is_laid_on_white_at_every_depth(
    depth: int, channels: int, clear: int, tmp_path: Path
) -> None:
    most = 2**depth - 1
    others = sorted({0, most, most // 2, most // 3} - {clear})
    row = [value for value in (clear, *others) for _ in range(channels)]
    transparency = chunk(b"tRNS", clear.to_bytes(2, "big") * channels)
    content = gray_png(depth, [row], transparency, channels=channels)
    loaded = np.asarray(load_image(written(tmp_path, content)))[0]
    assert loaded[0].tolist() == [255, 255, 255]
    expected = np.array(others)[:, None].repeat(3, 1) * 255 / most
    np.testing.assert_allclose(loaded[1:], expected, atol=1)
    on_black = np.asarray(load_image(tmp_path / "a.png", background="black"))[0]
    assert on_black[0].tolist() == [0, 0, 0]


def test_a_picture_of_too_many_pixels_is_refused_in_plain_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, saved(Image.new("1", (2001, 1000)), "PNG"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    for read in (load_image, image_size):
        with pytest.raises(LoLDUError) as caught:
            read(path)
        assert str(caught.value) == (
            f"The picture {path} cannot be read; scale it down or remove it (it has more than 2 "
            "million pixels)."
        )
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_500_000)  # Pillow would warn of an attack
    assert load_image(path).size == (2001, 1000)


def test_a_pipe_and_a_program_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(LoLDUError, match=r"pipe\.png cannot be read; .*\(not a file\)"):
        load_image(tmp_path / "pipe.png")
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    with pytest.raises(LoLDUError, match="not a known picture format"):
        load_image(written(tmp_path, program))
    with pytest.raises(LoLDUError, match="not a known picture format"):
        load_image(written(tmp_path, JPEG), formats=("PNG",))


def test_reading_in_threads_keeps_the_filters_of_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = written(tmp_path, PNG), list(warnings.filters)
    first_inside, second_inside, first_done = (threading.Event() for _ in range(3))
    really = opener.Image.open

    def paused(*given: object, **options: object) -> Image.Image:
        warnings.warn_explicit("of Pillow", UserWarning, "x.py", 1, module="PIL.Any")
        if threading.current_thread().name == "first":
            first_inside.set()
            second_inside.wait(9)
        else:
            second_inside.set()
            first_done.wait(9)
        return really(*given, **options)  # pyright: ignore

    monkeypatch.setattr(opener.Image, "open", paused)
    threads = [
        threading.Thread(target=load_image, args=(path,), name=name) for name in ("first", "second")
    ]
    threads[0].start()
    first_inside.wait(9)
    threads[1].start()
    threads[0].join(9)
    first_done.set()
    threads[1].join(9)
    assert warnings.filters == before


def test_a_missing_text_of_a_png_is_none(tmp_path: Path) -> None:
    path = written(tmp_path, with_chunk(PNG, chunk(b"tEXt", b"parameters\0a cat")))
    assert stored_text(path, "parameters") == "a cat"
    assert stored_text(path, "other") is None
    huge = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(PADDING))
    for content in (JPEG, b"", with_chunk(PNG, huge)):
        assert stored_text(written(tmp_path, content), "parameters") is None
    assert stored_text(tmp_path / "nowhere.png", "parameters") is None
