"""Mutated files of every kind that people bring: the right result, or an error of one sentence."""

import json
import logging
import random
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, PngImagePlugin, features

from loldu.errors import LoLDUError
from loldu.pictures.captions import Line, read_metadata
from loldu.pictures.folder import read_captions
from loldu.pictures.mask import load_mask
from loldu.pictures.open import load_image
from tests.damage import (
    ADOBE_RGB,
    chunk,
    exif_block,
    gray_png,
    heic,
    mutated,
    mutated_text,
    saved,
    snapshot,
    with_chunk,
)

logger = logging.getLogger(__name__)

COUNTS = pytest.mark.parametrize("count", [30, pytest.param(2000, marks=pytest.mark.slow)])
"""2,000 files of a kind take minutes."""


def seeds() -> dict[str, list[bytes]]:
    """Sound pictures of every format, small enough that most mutations strike something."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 10, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb, gray, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("RGB").quantize(8)
    exif = exif_block((0x0112, 3, 1, 6 << 16), (0x010F, 2, 8, 38), more=b"a phone\0")
    frames: dict[str, Any] = {"save_all": True, "append_images": [rgb.rotate(90).resize((10, 12))]}
    deep = gray_png(16, [[0, 300, 40_000, 65_535]] * 4, chunk(b"tRNS", b"\1\x2c"))
    text = chunk(b"zTXt", b"workflow\0\0x\x9cKLJ\x06\0\x02M\x01'")
    found = {
        "png": [
            with_chunk(saved(rgb, "PNG", exif=exif), text),
            saved(rgba, "PNG", icc_profile=ADOBE_RGB),
            saved(palette, "PNG", transparency=bytes([0, 90, 255])),
            gray_png(4, [[0, 5, 15, 9]] * 4, chunk(b"tRNS", b"\0\5")),
            deep,
        ],
        "jpg": [
            saved(rgb, "JPEG", exif=exif, icc_profile=ADOBE_RGB),
            saved(rgba.convert("CMYK"), "JPEG"),
            saved(gray, "JPEG", progressive=True, comment=b"a comment"),
        ],
        "webp": [
            saved(rgb, "WEBP", exif=exif),
            saved(rgba, "WEBP", lossless=True),
            saved(rgb, "WEBP", **frames),
        ],
        "gif": [saved(palette, "GIF", transparency=3), saved(palette, "GIF", **frames)],
        "bmp": [saved(rgb, "BMP"), saved(palette, "BMP"), saved(gray.convert("1"), "BMP")],
        "tiff": [
            saved(rgb, "TIFF", compression="tiff_lzw"),
            saved(rgba, "TIFF"),
            saved(gray, "TIFF", tiffinfo={0x0112: 6}),
        ],
    }
    turned = Image.Exif()
    turned[0x0112] = 6
    found["heic"] = [heic(rgb, exif=turned.tobytes(), quality=90), heic(rgba, quality=-1)]
    if features.check("avif"):
        found["avif"] = [saved(rgb, "AVIF", exif=exif), saved(rgba, "AVIF", quality=90)]
    return found


SEEDS = seeds()
TURNED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).swapaxes(0, 1),
    8: np.rot90,
}


def as_pillow_reads(path: Path, background: str = "white") -> np.ndarray | None:
    """Pillow's own conversion, upright and on a background; None if Pillow cannot read the file."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(path) as image:
                depth = image.tile[0][3] if image.tile else None
                image.load()
                pixels = _on(background, image, depth if image.format == "PNG" else None)
                try:
                    orientation = image.getexif().get(0x0112, 1)
                except Exception:
                    orientation = 1
        except Exception:
            return None
    return TURNED.get(orientation, np.asarray)(pixels)


def _on(background: str, image: Image.Image, depth: object) -> np.ndarray:
    clear = image.info.get("transparency")
    colour = 255 if background == "white" else 0
    if image.mode.startswith("I"):
        deep = np.asarray(image)
        gray = np.rint(deep / 257).clip(0, 255).astype(np.uint8)
        gray = np.where(deep == clear, colour, gray) if isinstance(clear, int) else gray
        return gray[..., None].repeat(3, 2).astype(np.uint8)
    if depth in ("L;2", "L;4") and isinstance(clear, int):
        most = {"L;2": 3, "L;4": 15}[str(depth)]
        gray = np.asarray(image)
        gray = np.where(gray == (clear & most) * (255 // most), colour, gray)
        return gray[..., None].repeat(3, 2).astype(np.uint8)
    if not image.has_transparency_data:
        return np.asarray(image.convert("RGB"))
    rgba = image.convert("RGBA")
    ground = Image.new("RGBA", rgba.size, background)
    return np.asarray(Image.alpha_composite(ground, rgba).convert("RGB"))


def as_tolerant_pillow_reads(path: Path) -> np.ndarray | None:
    """Return the pixels that Pillow reads when it tolerates large texts and wrong checksums."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
        patch.setattr(PngImagePlugin, "MAX_TEXT_CHUNK", 2**26)
        return as_pillow_reads(path)


def attempt(read: Callable[[], Any]) -> tuple[Any, str]:
    """The result, or the error message; anything but a LoLDUError fails the test."""
    try:
        return read(), ""
    except LoLDUError as error:
        return None, str(error)


@COUNTS
@pytest.mark.parametrize("kind", SEEDS)
def test_mutated_pictures(kind: str, count: int, tmp_path: Path) -> None:
    path, seen = tmp_path / f"a.{kind}", Counter[str]()
    for number in range(count):
        rng = random.Random(f"{kind} {number}")
        path.write_bytes(mutated(rng.choice(SEEDS[kind]), rng))
        before = snapshot(tmp_path)
        expected = as_pillow_reads(path)
        loaded, sentence = attempt(lambda: load_image(path, to_srgb=False))
        if loaded is None:
            seen["refused"] += 1
            assert expected is None, (number, sentence)
            assert sentence.startswith(f"The picture {path} cannot be read; "), number
            assert sentence.endswith(")."), number
            assert "\n" not in sentence, number
        else:
            seen["read" if expected is not None else "beyond Pillow"] += 1
            expected = as_tolerant_pillow_reads(path) if expected is None else expected
            if expected is not None:
                np.testing.assert_array_equal(np.asarray(loaded), expected, str(number))
            assert load_image(path).size == loaded.size
        assert snapshot(tmp_path) == before
    logger.info("%s: %s", kind, dict(seen))
    assert min(seen["read"], seen["refused"]) > count / 20


@COUNTS
def test_mutated_masks(count: int, tmp_path: Path) -> None:
    marked = Image.new("L", (10, 12))
    marked.paste(255, (2, 2, 8, 9))
    alpha = Image.merge("LA", [marked, marked.rotate(180)])
    files = [saved(marked, "PNG"), saved(alpha, "PNG"), saved(marked.convert("1"), "PNG")]
    path, seen = tmp_path / "a-masklabel.png", Counter[str]()
    for number in range(count):
        rng = random.Random(number)
        path.write_bytes(mutated(rng.choice(files), rng))
        before = snapshot(tmp_path)
        pixels = as_pillow_reads(path, "black")
        gray = None if pixels is None else Image.fromarray(pixels).convert("L")
        mask, sentence = attempt(lambda: load_mask(path, (20, 24)))
        seen["refused" if mask is None else "read"] += 1
        if mask is None:
            assert str(path) in sentence
            assert "\n" not in sentence
            if gray is not None and gray.size == (10, 12):
                assert gray.getbbox() is None, (number, sentence)
                assert sentence.endswith("is all black; paint the part to learn white.")
        elif gray is not None:
            resized = gray.resize((20, 24), Image.Resampling.BOX)
            np.testing.assert_array_equal(np.asarray(mask), np.asarray(resized), str(number))
        assert snapshot(tmp_path) == before
    logger.info("%s: %s", "masks", dict(seen))
    assert min(seen.values()) > count / 20


@COUNTS
def test_mutated_captions(count: int, tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    texts = ["\ufeffa photo of sks café", "a\u2028b\x85 猫\r\nlast line\n", " x ", "😀"]
    path, seen = tmp_path / "a.txt", Counter[str]()
    for number in range(count):
        rng = random.Random(number)
        content = mutated_text(rng.choice(texts), rng, ["", "\0", "\ufeff", "x" * 9_999])
        path.write_bytes(content)
        before = snapshot(tmp_path)
        try:
            text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n").strip()
            expected = "is empty: write the prompt there" if not text else ""
        except UnicodeDecodeError:
            text, expected = "", "is not UTF-8; save it as UTF-8"
        found, sentence = attempt(
            lambda: read_captions([tmp_path / "a.png"], ["a prompt"], "--instance_prompt")
        )
        seen["refused" if found is None else "read"] += 1
        if found is None:
            assert expected, (number, sentence)
            assert expected in sentence, number
            assert str(path) in sentence
        else:
            assert not expected, number
            assert found[0].caption == text, number
        assert snapshot(tmp_path) == before
    logger.info("%s: %s", "captions", dict(seen))
    assert min(seen.values()) > count / 20


ROWS = """{"file_name": "a.png", "text": "a photo of sks café"}
{"file_name": "./b.png", "repeats": 3, "more": [1, {"x": null}]}

{"file_name": "c d.png", "text": "with\\u2028line", "repeats": 2}
"""
VALUES = [
    *('"a.png"}', '"\\ud800"}', "[" * 5_000, "1" * 5_000, "NaN}", "-0}", "1e999}", "10001}"),
    *('{"file_name": "a.png", "repeats": 7}', "null", "\0", "\u2028", '"text": ""}', "true}", "{}"),
]


def lines_of(content: bytes, names: list[str]) -> dict[str, Line]:
    """The lines by the rules of the documentation; any exception for any mistake."""
    found: dict[str, Line] = {}
    text = content.decode("utf-8-sig").replace("\r\n", "\n").replace("\r", "\n")
    for row in (json.loads(line) for line in text.split("\n") if line.strip()):
        name, caption, repeats = row["file_name"], row.get("text"), row.get("repeats", 1)
        name = names[names.index(str(PurePosixPath(name)))]
        assert name not in found
        assert isinstance(row, dict)
        assert "text" in row or "repeats" in row
        assert "text" not in row or caption.strip().encode()
        assert type(repeats) is int
        assert 1 <= repeats <= 10_000
        found[name] = Line(caption and caption.strip(), repeats)
    return found


@COUNTS
def test_mutated_metadata(count: int, tmp_path: Path) -> None:
    names, path, seen = ["a.png", "b.png", "c d.png"], tmp_path / "metadata.jsonl", Counter[str]()
    for number in range(count):
        path.write_bytes(mutated_text(ROWS, random.Random(number), VALUES))
        before = snapshot(tmp_path)
        try:
            expected = lines_of(before["metadata.jsonl"], names)
        except Exception:
            expected = None
        found, sentence = attempt(lambda: read_metadata(tmp_path, names))
        seen["refused" if found is None else "read"] += 1
        assert found == expected, (number, sentence)
        if found is None:
            assert all(str(path) in line and line.endswith(".") for line in sentence.split("\n"))
        assert snapshot(tmp_path) == before
    logger.info("%s: %s", "metadata", dict(seen))
    assert min(seen.values()) > count / 20
