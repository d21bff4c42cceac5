"""Check the metadata of a concept file, once, where the file is written or read.

A library user may store any JSON. The names below mean the same in every file, because programs act
on them: they fill prompts and decide how the base is read.
"""

# Values of JSON have any type.
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

MOST_DEEP = 20
"""Levels of tables and lists; programs that print or copy metadata go down by recursion."""
LARGEST = 2**64
"""The largest whole number; a seed has 64 bits."""
LONGEST = 10_000
"""Characters of a text that programs act on."""
_SHOWN = 60
"""Characters of a file's text that a message quotes."""

_Kind = tuple[str, Callable[[Any], bool]]


def _is_text(value: Any) -> bool:  # noqa: ANN401
    return isinstance(value, str) and len(value) <= LONGEST


def _is_texts(value: Any) -> bool:  # noqa: ANN401
    return _is_text(value) or (isinstance(value, list) and all(map(_is_text, value)))


def _is_layers(value: Any) -> bool:  # noqa: ANN401
    return type(value) is int and value >= 0


def _is_chunks(value: Any) -> bool:  # noqa: ANN401
    return type(value) is int and 1 <= value <= 10


def _is_prediction(value: Any) -> bool:  # noqa: ANN401
    return value in ("epsilon", "v_prediction")


_TEXT: _Kind = f"a string of at most {LONGEST} characters", _is_text
_KNOWN: dict[str, _Kind] = {
    "method": _TEXT,
    "token": _TEXT,
    "class_name": _TEXT,
    "instance_prompt": _TEXT,
    "class_prompt": ("a string or a list of strings", _is_texts),
    "license": _TEXT,
    # The first concepts had the name of the base here.
    "base": ("a table", lambda value: isinstance(value, str | dict)),
}
_BASE: dict[str, _Kind] = {
    "family": _TEXT,
    "pretrained_model_name_or_path": _TEXT,
    "vae": _TEXT,
    "revision": _TEXT,
    "variant": _TEXT,
    "single_file_config": _TEXT,
    "prediction_type": ("epsilon or v_prediction", _is_prediction),
    "clip_skip": ("a number of layers", _is_layers),
    "prompt_chunks": ("a number from 1 to 10", _is_chunks),
    "sha256": _TEXT,
}


def check_metadata(metadata: Mapping[str, Any]) -> None:
    """Check that metadata is plain JSON, and that the names that programs act on have their types.

    Raises:
        ValueError: If a value has another type, a number is not finite or too large, or tables are
            nested too deep. The message says which, in less than a line.
    """
    require_plain(metadata, "metadata")
    _require_kinds(metadata, _KNOWN, "metadata")
    if isinstance(base := metadata.get("base"), dict):
        _require_kinds(base, _BASE, "metadata.base")


def base_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return what checked metadata says about the base, by option name; {} if it says nothing."""
    base = metadata.get("base")
    return base if isinstance(base, dict) else {}


def require_plain(value: object, where: str) -> None:
    """Check that a JSON value has finite, bounded numbers and few levels.

    Raises:
        ValueError: If not; the message begins with `where`.
    """
    for depth, each in _values(value):
        if depth > MOST_DEEP:
            raise ValueError(f"{where} is nested more than {MOST_DEEP} levels deep")
        if isinstance(each, float) and not math.isfinite(each):
            raise ValueError(f"{where} has a number that is not finite")
        if type(each) is int and abs(each) > LARGEST:
            raise ValueError(f"{where} has a number beyond {LARGEST}")
        if isinstance(each, str) and not _is_unicode(each):
            raise ValueError(f"{where} has a string that is not Unicode text")


def shown(value: object, length: int = _SHOWN) -> str:
    """Return a value from a file for a message: one line of printable text, cut if it is long."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else "?" for c in text[: length + 1])
    return text if len(text) <= length else f"{text[:length]}..."


def _values(value: object) -> Iterator[tuple[int, object]]:
    """Yield every value inside a JSON value with its depth, without recursion."""
    left: list[tuple[int, Any]] = [(0, value)]
    while left:
        level, each = left.pop()
        yield level, each
        if isinstance(each, Mapping):
            each = [*each, *each.values()]
        if isinstance(each, list | tuple):
            left += [(level + 1, one) for one in each]


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


def _require_kinds(table: Mapping[str, Any], kinds: Mapping[str, _Kind], where: str) -> None:
    for name, (words, holds) in kinds.items():
        value = table.get(name)
        if value is not None and not holds(value):
            raise ValueError(f"{where}.{name} is {shown(value)}, and must be {words}")
