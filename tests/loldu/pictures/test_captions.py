import itertools
from pathlib import Path

import numpy as np
import pytest

from loldu.errors import LoLDUError
from loldu.pictures.captions import Line, read_metadata, tag_variant

GOOD = '{"file_name": "a.png", "text": "a photo of sks dog"}'


def test_a_folder_without_metadata_says_nothing(tmp_path: Path) -> None:
    assert read_metadata(tmp_path, ["a.png"]) == {}


def test_lines_with_a_text_or_repeats_or_both(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_bytes(
        b"\xef\xbb\xbf" + GOOD.encode() + b'\r\n\r\n{"file_name": "b.png", "repeats": 2}\r\n'
    )
    assert read_metadata(tmp_path, ["a.png", "b.png", "c.png"]) == {
        "a.png": Line("a photo of sks dog"),
        "b.png": Line(None, 2),
    }


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "a.png",}', r"is not JSON \(.*, column 23\); it should look like \{"),
        ("a.png a photo", r"is not JSON \(Expecting value, column 1\)"),
        ('["a.png", "a photo"]', "has no file_name"),
        ('{"text": "a photo"}', "has no file_name"),
        ('{"file_name": 3, "text": "a photo"}', "has no file_name"),
        ('{"file_name": "dog1.pmg", "text": "x"}', r"about dog1\.pmg, .* perhaps you meant dog1"),
        ('{"file_name": "zzz", "text": "x"}', "about zzz, .* correct the name or remove the line"),
        ('{"file_name": "a.png"}', "has no text"),
        ('{"file_name": "a.png", "txet": "x"}', "has no text"),
        ('{"file_name": "a.png", "text": " "}', r"has an empty text; write the prompt of a\.png"),
        ('{"file_name": "a.png", "text": 7}', "has an empty text"),
        ('{"file_name": "a.png", "text": "a \\ud800"}', "has a text with half a character"),
        ("[" * 100_000, r"is JSON that cannot be read \(.*\); it should look like \{"),
        ("1" * 5_000, r"is JSON that cannot be read \("),
        ('{"file_name": "a.png", "repeats": 0}', "has repeats 0; it must be a whole number from 1"),
        ('{"file_name": "a.png", "repeats": 100000000}', "number from 1 to 10000"),
        ('{"file_name": "a.png", "repeats": 1.5}', r"has repeats 1\.5"),
        ('{"file_name": "a.png", "repeats": true}', "has repeats True"),
        ('{"file_name": "a.png", "repeats": "2"}', "has repeats '2'"),
        (GOOD.replace("a.png", "b.png"), r"repeats b\.png; keep one of both"),
    ],
)
def test_a_line_that_cannot_be_used_gives_one_clear_error_with_its_number(
    line: str, message: str, tmp_path: Path
) -> None:
    other = GOOD.replace("a.png", "b.png")
    (tmp_path / "metadata.jsonl").write_text(f"{other}\n\n{line}\n")
    with pytest.raises(LoLDUError, match=rf"metadata\.jsonl, line 3 .*{message}") as caught:
        read_metadata(tmp_path, ["a.png", "b.png", "dog1.png"])
    assert str(caught.value).count("\n") == 0


def test_metadata_in_another_encoding_gives_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text(GOOD, encoding="utf-16")
    with pytest.raises(LoLDUError, match=r"metadata\.jsonl is not UTF-8; save it as UTF-8"):
        read_metadata(tmp_path, ["a.png"])


def test_tags_are_dropped_and_shuffled_after_the_first() -> None:
    caption, seen = "sks dog, red,  ball ,, on grass", set()
    for seed in range(300):
        rng = np.random.default_rng(seed)
        seen.add(tag_variant(caption, rng, shuffle=True, dropout=0.5, keep=1))
    tags = ("red", "ball", "on grass")
    orders = {order for size in range(4) for order in itertools.permutations(tags, size)}
    assert seen == {", ".join(("sks dog", *order)) for order in orders}
    rng = np.random.default_rng(0)
    kept = [tag_variant(caption, rng, shuffle=False, dropout=0.25, keep=0) for _ in range(2000)]
    for tag in ("sks dog", *tags):
        share = sum(tag in text.split(", ") for text in kept) / 2000
        assert share == pytest.approx(0.75, abs=0.04)
    assert tag_variant(caption, rng, shuffle=True, dropout=0.9, keep=9) == (
        "sks dog, red, ball, on grass"
    )
