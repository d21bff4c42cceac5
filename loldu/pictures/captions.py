"""Read captions and prompts: `name.txt` next to a picture, or lines of a file."""

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, cast

import numpy as np

from loldu.errors import LoLDUError, Mistakes, hint

METADATA = "metadata.jsonl"
_EXAMPLE = '{"file_name": "a.png", "text": "a photo of sks dog"}'
_MOST_REPEATS = 10_000


@dataclass(frozen=True)
class Line:
    """A picture's line of `metadata.jsonl`; without a text it only gives the repeats."""

    text: str | None
    repeats: int = 1


def same_name(name: str) -> str:
    """Return a name with composed accents: macOS stores them decomposed, most systems do not."""
    return unicodedata.normalize("NFC", name)


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without the byte-order mark that some editors write.

    Raises:
        LoLDUError: If it is not UTF-8.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig")  # read_text() takes half a mark for nothing
    except UnicodeDecodeError as error:
        raise LoLDUError(f"The caption file {path} is not UTF-8; save it as UTF-8.") from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_lines(path: Path) -> list[str]:
    """Return the lines of a UTF-8 file, without their ends.

    Unlike `splitlines`, this leaves the exotic line ends alone that a prompt or JSON may hold, such
    as U+2028.

    Raises:
        LoLDUError: If it is not UTF-8.
    """
    text = read_text(path)
    return text.removesuffix("\n").split("\n") if text else []


def read_json(text: str, where: str) -> Any:  # noqa: ANN401  any JSON
    """Return the value of a JSON text that a person wrote.

    Args:
        text: The text.
        where: Its place, for messages.

    Raises:
        LoLDUError: If it is not JSON, or too deep or large for Python.
    """
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, " if "\n" in text else ""
        raise LoLDUError(
            f"{where} is not JSON ({error.msg}, {place}column {error.colno})."
        ) from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, or 1,000 brackets
        raise LoLDUError(f"{where} is JSON that cannot be read ({error}).") from error


def is_text(value: object) -> bool:
    """Tell whether a value is a string of whole characters, which UTF-8 can hold.

    JSON may hold one half of a character (a lone surrogate), and a file name any bytes.
    """
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def tag_variant(
    caption: str, rng: np.random.Generator, *, shuffle: bool, dropout: float, keep: int
) -> str:
    """Return a caption with some tags left out, in another order; tags stand between commas.

    Args:
        caption: The caption.
        rng: Random numbers.
        shuffle: Whether to change the order.
        dropout: Probability that a tag is left out.
        keep: The first tags, which stay as they are.
    """
    tags = [tag.strip() for tag in caption.split(",")]
    first, others = tags[:keep], tags[keep:]
    others = [tag for tag in others if rng.random() >= dropout]
    if shuffle:
        order: list[int] = rng.permutation(len(others)).tolist()
        others = [others[index] for index in order]
    return ", ".join(tag for tag in (*first, *others) if tag)


def read_metadata(folder: Path, pictures: Iterable[str]) -> dict[str, Line]:
    """Return the lines of a folder's `metadata.jsonl` by picture; empty without such a file.

    Each line is a JSON object as in Hugging Face's imagefolder: `file_name`, and `text` or
    `repeats` (a whole number) or both. Other keys are ignored.

    Raises:
        LoLDUError: If lines are malformed or name no picture; the message gives their numbers.
    """
    path = folder / METADATA
    if not path.is_file():
        return {}
    known = {same_name(name): name for name in pictures}
    found: dict[str, Line] = {}
    mistakes = Mistakes()
    for number, text in enumerate(read_lines(path), start=1):
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
        parsed = read_json(text, where)
    except LoLDUError as error:
        raise LoLDUError(f"{str(error)[:-1]}; it should look like {_EXAMPLE}.") from error
    row = cast("dict[str, Any]", parsed) if isinstance(parsed, dict) else {}
    if not isinstance(row.get("file_name"), str):
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
    if caption is not None and not is_text(caption):
        raise LoLDUError(f"{where} has a text with half a character; write the prompt anew.")
    if type(repeats) is not int or not 1 <= repeats <= _MOST_REPEATS:
        raise LoLDUError(
            f"{where} has repeats {repeats!r}; it must be a whole number from 1 to {_MOST_REPEATS}."
        )
    return known[name], Line(caption and caption.strip(), repeats)
