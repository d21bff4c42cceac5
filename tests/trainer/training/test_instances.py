import logging
import os
import re
from pathlib import Path

import pytest
from PIL import Image

from loldu.errors import LoLDUError
from loldu.pictures.folder import list_images
from trainer.options.config import InstanceConfig
from trainer.training.instances import find_instances

RED = (255, 0, 0)


def test_listing_is_sorted_and_names_ignored_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("b.JPG", "a.png", "d.webp", "c.bmp", "e.jpeg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("a caption")
    (tmp_path / "B.TXT").write_text("nobody's caption: the picture is b")
    (tmp_path / "metadata.jsonl").write_text("")
    (tmp_path / "notes.md").write_text("x")
    (tmp_path / "._b.jpg").write_text("what macOS leaves on other disks")
    Image.new("L", (8, 8)).save(tmp_path / "d-masklabel.PNG", "PNG")
    Image.new("L", (8, 8)).save(tmp_path / "x-masklabel.png")
    (tmp_path / ".ipynb_checkpoints").mkdir()
    with caplog.at_level(logging.INFO, logger="loldu.pictures"):
        names = [path.name for path in list_images(tmp_path)]
    assert names == ["a.png", "b.JPG", "c.bmp", "d.webp", "e.jpeg"]
    (line,) = caplog.messages
    assert line.endswith("not a picture: ._b.jpg, B.TXT, notes.md, x-masklabel.png")


def test_sidecar_overrides_the_instance_prompt(pictures: Path) -> None:
    (pictures / "b.txt").write_text("  a sks toy in the snow \n")
    found = find_instances(InstanceConfig(pictures, "a photo of a sks toy", resolution=16))
    assert [(image.path.name, image.caption) for image in found] == [
        ("a.png", "a photo of a sks toy"),
        ("b.png", "a sks toy in the snow"),
        ("c.png", "a photo of a sks toy"),
    ]


def test_unusable_files_are_named(pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(LoLDUError, match=r"no folder .*nowhere"):
        find_instances(InstanceConfig(tmp_path / "nowhere", "sks"))
    with pytest.raises(LoLDUError, match=r"a\.png has no caption: give --instance_prompt"):
        find_instances(InstanceConfig(pictures))
    with pytest.raises(LoLDUError, match=r"a\.png is too small: 20 x 24 .* at least 128"):
        find_instances(InstanceConfig(pictures, "sks", resolution=512))
    (pictures / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(LoLDUError, match=r"a\.txt is not UTF-8"):
        find_instances(InstanceConfig(pictures, "sks"))
    (pictures / "a.txt").unlink()
    (pictures / "b.png").write_bytes((pictures / "b.png").read_bytes()[:200])
    with pytest.raises(LoLDUError, match=r"b\.png cannot be read"):
        find_instances(InstanceConfig(pictures, "sks", resolution=16))
    (tmp_path / "empty").mkdir()
    with pytest.raises(LoLDUError, match=r"no pictures in .*empty"):
        find_instances(InstanceConfig(tmp_path / "empty", "sks"))


def test_an_empty_caption_file_is_an_error_even_with_a_prompt(pictures: Path) -> None:
    for name, content in (("a", b""), ("b", b"\xef\xbb\xbf \r\n")):
        (pictures / f"{name}.txt").write_bytes(content)
        with pytest.raises(LoLDUError) as caught:
            find_instances(InstanceConfig(pictures, "a sks toy", resolution=16))
        expected = f"{pictures / name}.txt is empty: write the prompt there, or remove it."
        assert str(caught.value) == expected
        (pictures / f"{name}.txt").write_text("a sks toy")


@pytest.mark.parametrize("ending", [".png", ".webp"])
@pytest.mark.parametrize("length", [245, 246, 251, 255])
def test_a_name_that_leaves_no_room_for_captions_and_masks(
    length: int, ending: str, tmp_path: Path
) -> None:
    name = "ä" * 20 + "a" * (length - 40 - len(ending))
    Image.new("RGB", (16, 16)).save(tmp_path / f"{name}{ending}")
    if length + 4 - len(ending) <= 255:
        (tmp_path / f"{name}.txt").write_text("a sks toy in the snow")
    (found,) = find_instances(InstanceConfig(tmp_path, "a sks toy", resolution=16))
    has_caption = length + 4 - len(ending) <= 255
    assert found.caption == ("a sks toy in the snow" if has_caption else "a sks toy")
    assert found.mask is None


def test_a_pipe_is_not_a_picture(pictures: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(pictures / "d.png")
    os.mkfifo(pictures / "a.txt")
    with caplog.at_level(logging.INFO, logger="loldu.pictures"):
        assert len(find_instances(InstanceConfig(pictures, "sks", resolution=16))) == 3
    assert "not a picture: a.txt, d.png" in caplog.text


def test_captions_and_masks_are_found_in_any_case_and_normalization(
    tmp_path: Path,
) -> None:
    composed, decomposed = "caf\u00e9", "cafe\u0301"  # as macOS spells it
    Image.new("RGB", (16, 16)).save(tmp_path / f"{composed}.PNG")
    (tmp_path / f"{decomposed}.TXT").write_bytes("\ufeffa sks café".encode())
    Image.new("L", (16, 16), 255).save(tmp_path / f"{composed}-masklabel.PNG")
    Image.new("RGB", (16, 16)).save(tmp_path / "naïve.jpg")
    row = '{"file_name": "./nai\u0308ve.jpg", "text": "a sks naïve", "repeats": 2, "seed": 3}\n'
    (tmp_path / "metadata.jsonl").write_text(row, encoding="utf-8")
    found = find_instances(InstanceConfig(tmp_path, "sks", resolution=16))
    assert [(image.path.suffix, image.caption, image.repeats) for image in found] == [
        (".PNG", "a sks café", 1),
        (".jpg", "a sks naïve", 2),
    ]
    assert found[0].mask == tmp_path / f"{composed}-masklabel.PNG"
    assert found[1].mask is None


def test_a_sidecar_wins_over_metadata_and_metadata_over_the_prompt(pictures: Path) -> None:
    lines = (
        '{"file_name": "b.png", "text": "b of the metadata"}',
        "",
        '{"file_name": "a.png", "text": "a of the\u2028metadata", "repeats": 4}',
    )
    (pictures / "metadata.jsonl").write_text("\n".join(lines), encoding="utf-8")
    (pictures / "b.txt").write_text("b of its own")
    found = find_instances(InstanceConfig(pictures, "the prompt", resolution=16))
    assert [(image.caption, image.repeats) for image in found] == [
        ("a of the\u2028metadata", 4),
        ("b of its own", 1),
        ("the prompt", 1),
    ]


def test_all_mistakes_are_reported_at_once(pictures: Path) -> None:
    Image.new("RGB", (3, 99)).save(pictures / "d.jpg")
    (pictures / "b.png").write_bytes(b"no picture")
    (pictures / "c.txt").write_bytes(b"\xff\xfe")
    Image.new("L", (20, 24)).save(pictures / "c-masklabel.png")
    (pictures / "metadata.jsonl").write_text("{\n[]\n")
    with pytest.raises(LoLDUError) as caught:
        find_instances(InstanceConfig(pictures, resolution=16))
    expected = (
        r"metadata\.jsonl, line 1 is not JSON",
        r"metadata\.jsonl, line 2 has no file_name",
        r"a\.png has no caption",
        r"b\.png has no caption",
        r"c\.txt is not UTF-8",
        r"d\.jpg has no caption",
        r"b\.png cannot be read",
        r"c-masklabel\.png is all black",
        r"d\.jpg is too small: 3 x 99",
    )
    reported = str(caught.value).splitlines()
    assert len(reported) == len(expected)
    for line, pattern in zip(reported, expected, strict=True):
        assert re.search(pattern, line)
        assert line.endswith(".")
