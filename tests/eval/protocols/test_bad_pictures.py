"""Unusual and broken pictures in `python -m eval images`: read correctly, or named."""

import io
import json
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from eval.__main__ import run
from eval.encoders.load import load_dino
from tests.damage import PNG_MAGIC, chunk, saved
from tests.eval.noise import save_noise

NOISE = np.random.default_rng(3).integers(0, 256, (32, 24, 3), dtype=np.uint8)


@pytest.fixture
def flags(scoring: list[str], tmp_path: Path) -> list[str]:
    save_noise(tmp_path / "real", ["0.png"], 7)
    (tmp_path / "drawn").mkdir()
    return [
        *("images", "--generated", str(tmp_path / "drawn"), "--real", str(tmp_path / "real")),
        *("--json", str(tmp_path / "out.json"), "--bootstrap_samples", "2", *scoring),
    ]


def pictures(tmp_path: Path) -> dict[str, dict]:
    message = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert list(message["subjects"]) == ["drawn"]
    return {p["name"]: p for p in message["subjects"]["drawn"]["pictures"]}


def bomb(side: int = 20_000) -> bytes:
    """A black 1-bit PNG of side x side pixels, in some 50 kB."""
    rows = zlib.compress(bytes((side // 8 + 1) * side), 9)
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", rows), chunk(b"IEND", b""))
    return PNG_MAGIC + b"".join(parts)


def write_bad(folder: Path) -> list[str]:
    """Unreadable files, in the order of their names."""
    content = {
        "cut.png": saved(Image.fromarray(NOISE), "PNG")[:900],
        "empty.jpg": b"",
        "huge.png": bomb(),
        "text.png": b"not a picture",
    }
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return list(content)


def test_unreadable_pictures_are_named_or_counted(
    flags: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    drawn = tmp_path / "drawn"
    save_noise(drawn, ["a.png", "fine.png", "z.png"])
    bad = write_bad(drawn)
    (tmp_path / "real" / "cut.png").write_bytes(b"of the same name as another")
    names = sorted([*bad, "a.png", "fine.png", "z.png"])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"prompt of {name}\n" for name in names), encoding="utf-8")
    flags = [*flags, "--prompts", str(prompts)]

    assert run(flags) == 2
    message = capsys.readouterr().err.strip()
    assert "\n" not in message
    for path in (*(drawn / name for name in bad), tmp_path / "real" / "cut.png"):
        assert message.count(f"The picture {path} cannot be read; ") == 1
    assert message.endswith("Or leave 5 pictures out with --skip_bad.")
    assert "fine.png" not in message
    assert not (tmp_path / "out.json").exists()

    assert run([*flags, "--skip_bad"]) == 0
    left = pictures(tmp_path)
    # Each keeps its own prompt.
    assert {name: p["prompt"] for name, p in left.items()} == {
        name: f"prompt of {name}" for name in ("a.png", "fine.png", "z.png")
    }
    skipped = json.loads((tmp_path / "out.json").read_text())["skipped"]
    expected = [*(f"drawn/generated/{name}" for name in bad), "drawn/real/cut.png"]
    assert skipped == dict.fromkeys(expected, "unreadable")
    assert all(f"{name} (unreadable)" in caplog.text for name in expected)

    for name in ("a.png", "fine.png", "z.png"):
        (drawn / name).unlink()
    prompts.write_text("one\n" * len(bad), encoding="utf-8")
    capsys.readouterr()
    assert run([*flags, "--skip_bad", "--overwrite"]) == 2
    assert "No generated picture of drawn is left to score." in capsys.readouterr().err


@dataclass(frozen=True)
class Odd:
    """An unusual file, the picture in it, and the picture that a careless reader would get."""

    data: bytes
    seen: Image.Image
    mistaken: Image.Image


def odd_pictures() -> dict[str, Odd]:
    rgb = Image.fromarray(NOISE)
    black, white = (Image.new("RGB", rgb.size, colour) for colour in ("black", "white"))
    first = rgb.quantize(8)
    gif = saved(first, "GIF", save_all=True, append_images=[black.convert("P")])
    jpeg = saved(rgb.convert("CMYK"), "JPEG", quality=95)
    cmyk = Image.open(io.BytesIO(jpeg)).convert("RGB")
    grey = rgb.convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    palette = rgb.quantize(16)
    clear = Image.fromarray(np.asarray(palette) == 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    upright = rgb.transpose(Image.Transpose.ROTATE_270)
    return {
        "animated.gif": Odd(gif, first.convert("RGB"), black),
        "cmyk.jpg": Odd(jpeg, cmyk, ImageOps.invert(cmyk)),
        "deep.png": Odd(saved(deep, "PNG"), grey.convert("RGB"), white),
        "palette.png": Odd(
            saved(palette, "PNG", transparency=0),
            Image.composite(white, palette.convert("RGB"), clear),
            palette.convert("RGB"),
        ),
        "turned.png": Odd(saved(rgb, "PNG", exif=exif), upright, rgb),
    }


def test_unusual_pictures_are_read_as_shown(
    flags: list[str], tmp_path: Path, dino_folder: Path
) -> None:
    odd = odd_pictures()
    for name, one in odd.items():
        (tmp_path / "drawn" / name).write_bytes(one.data)
    assert run(flags) == 0
    found = pictures(tmp_path)
    dino = load_dino(str(dino_folder))
    (real,) = dino.encode_images([Image.open(tmp_path / "real" / "0.png")])
    for name, one in odd.items():
        seen, mistaken = (dino.encode_images([one.seen, one.mistaken]) @ real).tolist()
        assert found[name]["dino"] == pytest.approx(seen, abs=1e-5), name
        assert abs(seen - mistaken) > 1e-4, name


def test_black_pictures_are_skipped_on_request(flags: list[str], tmp_path: Path) -> None:
    save_noise(tmp_path / "drawn", ["a.png"])
    for path in (tmp_path / "drawn" / "black.png", tmp_path / "real" / "night.png"):
        Image.new("RGB", (32, 32)).save(path)
    assert run(flags) == 0
    assert list(pictures(tmp_path)) == ["a.png", "black.png"]
    assert run([*flags, "--skip_black", "--overwrite"]) == 0
    assert list(pictures(tmp_path)) == ["a.png"]
    message = json.loads((tmp_path / "out.json").read_text())
    # A real one is as it is.
    assert message["skipped"] == {"drawn/generated/black.png": "black"}
    assert message["subjects"]["drawn"]["real"] == 2


def test_a_folder_without_pictures(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(flags) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith(f"There are no pictures in {tmp_path / 'drawn'}")
    assert "\n" not in message
