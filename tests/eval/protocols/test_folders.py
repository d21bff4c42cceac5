"""The subject and the prompt of each picture."""

import json
import re
from pathlib import Path

import pytest

from eval.protocols.folders import generated_pictures, split_by_subject, subject_folders
from loldu.errors import LoLDUError
from tests.eval.noise import save_noise

NAMES = ["a.png", "b.jpg", "c.webp"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with three pictures, saved in another order than that of their names."""
    save_noise(tmp_path / "drawn", NAMES[::-1])
    return tmp_path / "drawn"


def prompts_of(folder: Path, **options: object) -> dict[str, str | None]:
    return {p.path.name: p.prompt for p in generated_pictures(folder, **options)}  # pyright: ignore[reportArgumentType]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_a_folder_of_pictures_is_one_subject(folder: Path, tmp_path: Path) -> None:
    (folder / "notes").mkdir()
    assert split_by_subject(folder) == {"drawn": folder}
    assert subject_folders(folder, tmp_path) == {"drawn": (folder, tmp_path)}


def test_a_folder_of_folders_has_a_subject_each(tmp_path: Path) -> None:
    for name in ("cup", "dog", ".hidden"):
        save_noise(tmp_path / "drawn" / name, ["0.png"])
        save_noise(tmp_path / "real" / name, ["0.png"])
    save_noise(tmp_path / "real" / "more", ["0.png"])
    drawn, real = tmp_path / "drawn", tmp_path / "real"
    assert subject_folders(drawn, real) == {
        "cup": (drawn / "cup", real / "cup"),
        "dog": (drawn / "dog", real / "dog"),
    }


def test_a_subject_named_as_the_folder_around_it(tmp_path: Path) -> None:
    save_noise(tmp_path / "dog" / "dog", ["0.png"])
    save_noise(tmp_path / "real" / "dog", ["0.png"])
    assert subject_folders(tmp_path / "dog", tmp_path / "real") == {
        "dog": (tmp_path / "dog" / "dog", tmp_path / "real" / "dog")
    }


def test_the_current_folder_has_its_own_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert list(subject_folders(Path(), Path())) == ["drawn"]


def test_a_subject_without_real_pictures_is_named(tmp_path: Path) -> None:
    save_noise(tmp_path / "drawn" / "cup", ["0.png"])
    with pytest.raises(LoLDUError, match=r"subject cup .* has no folder .*real"):
        subject_folders(tmp_path / "drawn", tmp_path / "real")


def test_lines_are_in_the_order_of_names(folder: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.txt", "\ufeffone\ntwo\n\u00e9t\u00e9\n")
    assert prompts_of(folder, prompts=prompts) == dict(
        zip(NAMES, ["one", "two", "été"], strict=True)
    )


def test_only_a_line_feed_ends_a_line(folder: Path, tmp_path: Path) -> None:
    lines = ["one\u2028more\u2029\x85", "two\x0b\x0c", "\x1c\x1d\x1ethree"]
    prompts = write(tmp_path / "prompts.txt", "\n".join(lines))
    assert prompts_of(folder, prompts=prompts) == dict(zip(NAMES, lines, strict=True))
    windows = write(tmp_path / "prompts.txt", "one\r\ntwo\r\nthree\r\n")
    assert prompts_of(folder, prompts=windows) == dict(
        zip(NAMES, ["one", "two", "three"], strict=True)
    )


def test_a_caption_is_found_in_any_capitals_and_beside_a_long_name(tmp_path: Path) -> None:
    long = "a" * 251 + ".png"
    save_noise(tmp_path, ["dog.png", long])
    write(tmp_path / "dog.TXT", "a red dog")
    write(tmp_path / f"{'a' * 251}.txt", "a long name")
    assert prompts_of(tmp_path) == {"dog.png": "a red dog", long: "a long name"}


def test_json_names_pictures_with_or_without_ending(folder: Path, tmp_path: Path) -> None:
    text = json.dumps({"c": "three", "a.png": "one", "a": "not this", "b": "two", "z": "of none"})
    prompts = write(tmp_path / "prompts.json", text)
    assert prompts_of(folder, prompts=prompts) == dict(
        zip(NAMES, ["one", "two", "three"], strict=True)
    )


def test_an_empty_prompt_in_json_is_one(folder: Path, tmp_path: Path) -> None:
    prompts = write(tmp_path / "prompts.json", json.dumps({"a.png": "", "b": "", "c": "three"}))
    assert prompts_of(folder, prompts=prompts) == {"a.png": "", "b.jpg": "", "c.webp": "three"}


def test_given_prompts_win_over_files(folder: Path, tmp_path: Path) -> None:
    for name in "abc":
        write(folder / f"{name}.txt", f"beside {name}\n")
    assert prompts_of(folder, prompt="of all") == dict.fromkeys(NAMES, "of all")
    prompts = write(tmp_path / "prompts.txt", "1\n2\n3\n")
    assert set(prompts_of(folder, prompts=prompts, prompt="of all").values()) == {"1", "2", "3"}
    lines = [{"file_name": name, "text": "of the file"} for name in NAMES[1:]]
    write(folder / "metadata.jsonl", "\n".join(map(json.dumps, lines)))
    assert prompts_of(folder) == {"a.png": "beside a", "b.jpg": "beside b", "c.webp": "beside c"}
    (folder / "c.txt").unlink()
    assert prompts_of(folder)["c.webp"] == "of the file"


def test_numbers_in_names_choose_the_prompts_of_a_suite(tmp_path: Path) -> None:
    save_noise(tmp_path, ["000-7.png", "001-7.png", "1-8.jpg"])
    expected = {"000-7.png": "zero", "001-7.png": "one", "1-8.jpg": "one"}
    assert prompts_of(tmp_path, numbered=["zero", "one"]) == expected
    with pytest.raises(LoLDUError, match=r"001-7.png is named after prompt 1, .* suite has 1"):
        prompts_of(tmp_path, numbered=["zero"])
    save_noise(tmp_path, ["cover.png"])  # then names are just names
    assert set(prompts_of(tmp_path, numbered=["zero", "one"]).values()) == {None}


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("p.txt", "one\ntwo\n", "2 lines for the 3 pictures"),
        ("p.txt", "one\ntwo\nthree\nfour\n", "4 lines for the 3 pictures"),
        ("p.txt", "", "0 lines for the 3 pictures"),
        ("p.json", "{", "is not JSON"),
        ("p.json", "[" * 100_000, "is JSON that cannot be read"),
        (
            "p.json",
            '{"a": "\\ud800", "b": "", "c": ""}',
            "must be an object from file names to prompts",
        ),
        ("p.json", '["one"]', "must be an object from file names to prompts"),
        ("p.json", '{"a": 1}', "must be an object from file names to prompts"),
        ("p.json", '{"a": "one", "c": "three"}', "has no prompt for b.jpg"),
    ],
)
def test_prompts_that_do_not_fit(
    folder: Path, tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    refused(folder, sentence, write(tmp_path / name, text))


def test_other_mistakes(folder: Path, tmp_path: Path) -> None:
    refused(folder, "nowhere is not a file", tmp_path / "nowhere")
    refused(folder, "is not a file", tmp_path)
    refused(tmp_path / "nowhere", "There is no folder")
    refused(tmp_path, "There are no pictures")
    write(folder / "b.txt", "two")
    refused(folder, r"a.png has no prompt, .* write it to a.txt")
    (tmp_path / "bad.txt").write_bytes(b"\xff\n\xff\n\xff\n")
    refused(folder, "not UTF-8", tmp_path / "bad.txt")


def refused(folder: Path, sentence: str, prompts: Path | None = None) -> None:
    with pytest.raises(LoLDUError) as caught:
        generated_pictures(folder, prompts)
    assert re.search(sentence, str(caught.value))
    assert "\n" not in str(caught.value)
