import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from loldu.errors import LoLDUError
from tests.webui.drawing.reference import SETTINGS
from webui.drawing.settings import parameters, png_bytes, read_png


def png_with(path: Path, text: str | None) -> Path:
    """Write a picture with a text chunk."""
    info = PngInfo()
    if text is not None:
        info.add_text("loldu", text)
    Image.new("RGB", (16, 16)).save(path, pnginfo=info)
    return path


def test_a_png_holds_all_settings(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png_bytes(Image.new("RGB", (16, 16), "red"), SETTINGS))
    assert read_png(path) == SETTINGS
    with Image.open(path) as image:
        assert image.info["parameters"] == parameters(SETTINGS)
        assert image.getpixel((3, 3)) == (255, 0, 0)


def test_other_tools_read_the_parameters() -> None:
    plain = replace(SETTINGS, prompt="a toy", negative_prompt="", concepts=(), base={})
    assert parameters(plain).startswith(
        "a toy\nSteps: 20, Sampler: PLMS, CFG scale: 7.5, Seed: 4294967295, Size: 16x16, "
    )
    *_, negative, last = parameters(SETTINGS).split("\n")
    assert negative == "Negative prompt: blurry"
    assert 'Clip skip: 2, LoLDU: "rabbit: 0.8, a, <b>house</b>: 1", Version: LoLDU ' in last


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", 2),
        ("prompt", ["a toy"]),
        ("negative_prompt", "x" * 2001),
        ("seed", -1),
        ("seed", 1.5),
        ("num_inference_steps", 10**9),
        ("num_inference_steps", True),
        ("guidance_scale", float("nan")),
        ("guidance_scale", "7"),
        ("base", "base"),
        ("base", {"pretrained_model_name_or_path": {}}),
        ("concepts", [{"name": "rabbit", "digest": "ab", "strength": 99}]),
        ("concepts", [{"name": "rabbit"}]),
        ("concepts", [{"name": "rabbit", "digest": "ab", "strength": 1}] * 5),
    ],
)
def test_settings_out_of_range_are_refused(tmp_path: Path, name: str, value: Any) -> None:  # noqa: ANN401
    text = json.dumps({**json.loads(SETTINGS.as_json()), name: value})
    with pytest.raises(LoLDUError, match=r"^x\.png has damaged settings"):
        read_png(png_with(tmp_path / "x.png", text), "x.png")


@pytest.mark.parametrize("text", ["", "{", "[]", "7", "[" * 100_000, '{"version": 1}'])
def test_a_damaged_chunk_gives_one_clear_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(LoLDUError, match=r"^The file has damaged settings"):
        read_png(png_with(tmp_path / "x.png", text))


def test_files_without_settings_are_refused(tmp_path: Path) -> None:
    with pytest.raises(LoLDUError, match=r"^The file has no settings"):
        read_png(png_with(tmp_path / "plain.png", None))
    for name, content in (
        ("empty.png", b""),
        ("text.png", b"no picture"),
        ("cut.png", png_bytes(Image.new("RGB", (16, 16)), SETTINGS)[:40]),
        ("huge.png", _header(60_000, 60_000)),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(LoLDUError, match=r"^The file is not a PNG that can be read"):
            read_png(tmp_path / name)
    Image.new("RGB", (16, 16)).save(tmp_path / "jpeg.png", format="JPEG")
    with pytest.raises(LoLDUError, match="is not a PNG"):
        read_png(tmp_path / "jpeg.png")


def _header(width: int, height: int) -> bytes:
    """The beginning of a PNG of that size."""
    content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    length, checksum = struct.pack(">I", 13), struct.pack(">I", zlib.crc32(content))
    return b"\x89PNG\r\n\x1a\n" + length + content + checksum + struct.pack(">I", 0) + b"IDAT"
