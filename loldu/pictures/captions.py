"""What is said about a picture: `name.txt` beside it, or its line of `metadata.jsonl`."""

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from loldu.errors import LoLDUError, Mistakes, hint

METADATA = "metadata.jsonl"
_EXAMPLE = '{"file_name": "a.png", "text": "a photo of sks dog"}'


@dataclass(frozen=True)
class Line:
    """A picture's line of `metadata.jsonl`; without a text it only says how often it counts."""

    text: str | None
    repeats: int = 1


def same_name(name: str) -> str:
    """One spelling of a name whose accents may be composed (most systems) or not (macOS)."""
    return unicodedata.normalize("NFC", name)


def read_text(path: Path) -> str:
    """A UTF-8 file, with or without the mark some editors put first.

    Raises:
        LoLDUError: when it is something else.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise LoLDUError(f"The caption file {path} is not UTF-8; save it as that.") from error


def read_metadata(folder: Path, pictures: Iterable[str]) -> dict[str, Line]:
    """The lines of a folder's `metadata.jsonl` by picture, or nothing without such a file.

    Each is a JSON object as in Hugging Face's imagefolder: `file_name`, and `text` or `repeats` (a
    whole number) or both. Other keys are somebody else's.

    Raises:
        LoLDUError: for lines that say nothing, or say it of no picture; with their numbers.
    """
    path = folder / METADATA
    if not path.is_file():
        return {}
    known = {same_name(name): name for name in pictures}
    found: dict[str, Line] = {}
    mistakes = Mistakes()
    # Not splitlines(): JSON strings may hold the exotic line ends that it splits at.
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if text.strip():
            with mistakes.collected():
                name, line = _parse(text, f"{path}, line {number}", known)
                if name in found:
                    raise LoLDUError(f"{path}, line {number} repeats {name}; keep one of both.")
                found[name] = line
    mistakes.tell()
    return found


def _parse(text: str, where: str, known: dict[str, str]) -> tuple[str, Line]:
    try:
        row: Any = json.loads(text)
    except json.JSONDecodeError as error:
        raise LoLDUError(
            f"{where} is not JSON ({error.msg}, column {error.colno}); it should look like "
            f"{_EXAMPLE}."
        ) from error
    if not isinstance(row, dict) or not isinstance(row.get("file_name"), str):
        raise LoLDUError(f"{where} has no file_name; it should look like {_EXAMPLE}.")
    name = same_name(str(PurePosixPath(row["file_name"])))
    if name not in known:
        perhaps = hint(name, known, "correct the name or remove the line")
        raise LoLDUError(f"{where} is about {name}, but the folder has no such picture; {perhaps}.")
    if not {"text", "repeats"} & row.keys():
        raise LoLDUError(f"{where} has no text; it should look like {_EXAMPLE}.")
    caption, repeats = row.get("text"), row.get("repeats", 1)
    if "text" in row and not (isinstance(caption, str) and caption.strip()):
        raise LoLDUError(f"{where} has an empty text; write the prompt of {name} there.")
    if type(repeats) is not int or repeats < 1:
        raise LoLDUError(f"{where} has repeats {repeats!r}; it must be 1, 2, 3 or more.")
    return known[name], Line(caption and caption.strip(), repeats)
