"""Uploads of a browser, valid or not."""

import os
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from loldu.errors import LoLDUError
from tests.damage import PNG_MAGIC, chunk, heic, saved, with_chunk
from webui.teaching.crops import Crop
from webui.teaching.uploads import FILE_TYPES, MAX_BYTES, Uploads, decoded, opened, shown_name

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def uploads(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path / "pictures")


def sent(tmp_path: Path, content: bytes) -> Path:
    path = tmp_path / "sent.png"
    path.write_bytes(content)
    return path


def bomb(side: int) -> bytes:
    """Return a PNG whose header promises a picture that the file lacks."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(bytes(1000)))
    return PNG_MAGIC + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cat.png is empty"),
        (b"just some text", "cat.png is not a picture that can be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cat.png is not a picture"),
        (bomb(9_000), "cat.png has more than 64 million pixels"),
        (bomb(12_000), "cat.png has more than 64 million pixels"),
        (bomb(60_000), "cat.png has more than 64 million pixels"),
        (bomb(64), "cat.png is incomplete"),
        (saved(Image.effect_noise((64, 64), 50), "PNG")[:-900], "cat.png is incomplete"),
        (b"\0" * (MAX_BYTES + 1), "cat.png has 32 MB"),
    ],
)
def test_files_that_are_no_pictures_are_reported_and_not_kept(
    uploads: Uploads, tmp_path: Path, content: bytes, message: str
) -> None:
    with pytest.raises(LoLDUError, match=message):
        uploads.add(sent(tmp_path, content), "cat.png")
    assert not [path for path in (tmp_path / "pictures").rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "name", ["../../x.png", "..\\..\\x.png", "/etc/x.png", "x.png\0", "a" * 999]
)
def test_a_name_is_only_shown(uploads: Uploads, tmp_path: Path, name: str) -> None:
    upload = uploads.add(sent(tmp_path, saved(Image.new("RGB", (8, 8)), "PNG")), name)
    assert upload.path.parent == tmp_path / "pictures" / "sent"
    assert len(upload.path.stem) == 24
    assert "/" not in shown_name(name)
    assert len(shown_name(name)) <= 60


def test_camera_metadata_is_removed_and_the_picture_upright(
    uploads: Uploads, tmp_path: Path
) -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (0, 0, 20, 20))
    exif = image.getexif()
    exif[0x0112] = 6  # to be turned clockwise
    exif[0x010F] = "secret camera"
    path = tmp_path / "photo.jpg"
    image.save(path, exif=exif, icc_profile=b"secret profile", comment=b"secret comment")
    upload = uploads.add(path, "photo.jpg")
    assert upload.size == (20, 40)
    assert b"secret" not in upload.path.read_bytes()
    turned = np.asarray(opened(upload), dtype=int)
    assert abs(turned[5, 10] - BLUE).max() < 10
    assert abs(turned[35, 10] - RED).max() < 10


def test_pictures_of_phones_and_cameras_are_taken(uploads: Uploads, tmp_path: Path) -> None:
    image = Image.new("RGB", (64, 64), RED)
    contents = {".heic": heic(image, quality=100)}
    contents |= {".avif": saved(image, "AVIF"), ".tiff": saved(image, "TIFF")}
    contents |= {".jfif": saved(image, "JPEG", quality=100)}
    assert contents.keys() < set(FILE_TYPES)
    for suffix, content in contents.items():
        upload = uploads.add(sent(tmp_path, content), f"cat{suffix}")
        np.testing.assert_allclose(opened(upload).getpixel((32, 32)), RED, atol=5)


def test_pictures_with_damaged_or_huge_metadata_are_taken(uploads: Uploads, tmp_path: Path) -> None:
    plain = saved(Image.new("RGB", (8, 8), RED), "PNG")
    workflow = chunk(b"zTXt", b"workflow\0\0" + zlib.compress(bytes(3 * 2**20)))
    for extra in (workflow, chunk(b"eXIf", b"garbage"), chunk(b"tEXt", b"a\0b", checksum=7)):
        upload = uploads.add(sent(tmp_path, with_chunk(plain, extra)), "cat.png")
        assert opened(upload).getcolors() == [(64, RED)]


def test_large_pictures_are_reduced(tmp_path: Path) -> None:
    path = sent(tmp_path, saved(Image.new("L", (6000, 3000)), "PNG"))
    assert decoded(path, "x").size == (4096, 2048)


def test_crops_are_stored_whole_or_not_at_all(uploads: Uploads, tmp_path: Path) -> None:
    image = Image.new("RGB", (40, 20), RED)
    image.paste(BLUE, (30, 0, 40, 10))
    upload = uploads.add(sent(tmp_path, saved(image, "PNG")), "cat.png")
    folder = uploads.store([(upload, Crop(2, 1, 0)), (upload, Crop())])
    assert sorted(path.name for path in folder.iterdir()) == ["picture-1.png", "picture-2.png"]
    first, second = (Image.open(path) for path in sorted(folder.iterdir()))
    assert first.size == (10, 10)
    assert first.getcolors() == [(100, BLUE)]
    assert second.size == (20, 20)
    assert second.getcolors() == [(400, RED)]

    upload.path.unlink()
    with pytest.raises(LoLDUError, match=r"cat\.png was uploaded too long ago"):
        uploads.store([(upload, Crop())])
    assert [path for path in folder.parent.iterdir()] == [folder]


def test_abandoned_uploads_are_deleted(uploads: Uploads, tmp_path: Path) -> None:
    old, new = (
        uploads.add(sent(tmp_path, saved(Image.new("L", (8, 8)), "PNG")), "x") for _ in range(2)
    )
    long_ago = time.time() - 3 * 24 * 3600
    os.utime(old.path, (long_ago, long_ago))
    Uploads(tmp_path / "pictures")
    assert not old.path.exists()
    assert new.path.exists()
