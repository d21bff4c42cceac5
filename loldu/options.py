"""Options as fields of dataclasses: each field states the facts that checks and commands need.

The comment above a field is its help text; its metadata are the facts of `Option`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from math import isfinite
from operator import ge, le, lt
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from loldu.errors import LoLDUError, hint

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Option:
    """An option and the facts about it, which its field or the field's section states.

    Attributes:
        name: Flag and TOML key.
        section: TOML table, or "".
        type: Annotation of the field.
        default: Default value, or `dataclasses.MISSING`.
        at_least: Smallest value.
        at_most: Largest value.
        above: Every value is finite and larger than this.
        below: Every value is smaller than this.
        multiple_of: Divisor of every value.
        methods: Training methods that use it; all if empty.
        needs: Option without which this one does nothing.
        resume: Whether a resumed run must keep the value: always, while it scores validation
            pictures, unless the learning rate is constant, or never.
        publish: Where others can read the value: in the concept file and on the Hub, on the Hub
            alone, there by the last part of a local path, or nowhere.
        per_concept: A table of --concepts may have it.
        saved: Written into config.toml; the others are about one start of the command.
    """

    name: str
    section: str
    type: Any
    default: Any
    at_least: int | float | None = None
    at_most: int | float | None = None
    above: int | float | None = None
    below: int | float | None = None
    multiple_of: int | None = None
    methods: tuple[str, ...] = ()
    needs: str | None = None
    resume: Literal["same", "same_if_scored", "same_unless_constant", "may_change"] = "same"
    publish: Literal["concept", "hub", "name", "never"] = "hub"
    per_concept: bool = False
    saved: bool = True


def option(default: T, **facts: Any) -> T:  # noqa: ANN401
    """Return a dataclass field with a default and facts, which are attributes of `Option`."""
    Option(name="", section="", type=None, default=None, **facts)  # a misspelt fact fails here
    return field(default=default, metadata=facts)


@cache
def options(config: type) -> dict[str, Option]:
    """Return every option of a config class by name, sections included."""
    return {each.name: each for each in _options(config, "", {})}


def _options(config: type, section: str, shared: Mapping[str, Any]) -> Iterator[Option]:
    types = get_type_hints(config)
    for each in fields(config):
        kind, facts = types[each.name], {**shared, **each.metadata}
        if is_dataclass(kind):
            yield from _options(kind, each.name, facts)  # pyright: ignore[reportArgumentType]
        else:
            yield Option(name=each.name, section=section, type=kind, default=each.default, **facts)


def values_of(config: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the value of every option by name."""
    values = {each.name: getattr(config, each.name) for each in fields(config)}
    for name in list(values):
        if is_dataclass(values[name]):
            values |= values_of(values.pop(name))
    return values


def build(config: type[T], values: Mapping[str, Any]) -> T:
    """Return a config with these values by option name, and defaults for the others."""
    types = get_type_hints(config)
    own: dict[str, Any] = {}
    for each in fields(config):  # pyright: ignore[reportArgumentType]
        if is_dataclass(types[each.name]):
            own[each.name] = build(types[each.name], values)
        elif each.name in values:
            own[each.name] = values[each.name]
    return config(**own)


def limit_problems(config: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield a sentence for every number that is outside the limits of its option."""
    for name, value in values_of(config).items():
        known = options(config.__class__)[name]
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        limits = [
            (f"{words} {limit}", holds(value, limit))
            for words, limit, holds in (
                ("at least", known.at_least, ge),
                ("at most", known.at_most, le),
                ("above", known.above, _is_finite_above),
                ("below", known.below, lt),
                ("a multiple of", known.multiple_of, _is_multiple),
            )
            if limit is not None
        ]
        if not all(holds for _, holds in limits):
            yield f"--{name} is {value}; it must be {' and '.join(words for words, _ in limits)}."


def text_problems(config: Any) -> Iterator[str]:  # noqa: ANN401
    """Yield a sentence for every value that no file could hold as UTF-8, such as a folder's name.

    Such a name has bytes that are not UTF-8, or letters that the locale does not allow.
    """
    for name, value in values_of(config).items():
        for text in map(str, cast(tuple[Any, ...], value) if isinstance(value, tuple) else [value]):
            try:
                text.encode()
            except UnicodeEncodeError:
                try:
                    os.fsencode(text).decode()
                    cure = "start the command with LC_ALL=C.UTF-8 in front, for its letters"
                except UnicodeError:
                    cure = "rename the file or folder"
                yield f"--{name} {text!r} cannot be read as UTF-8; {cure}."


def _is_finite_above(value: int | float, limit: int | float) -> bool:
    return isfinite(value) and value > limit


def _is_multiple(value: int | float, limit: int | float) -> bool:
    return value % limit == 0


def typed_values(
    values: Mapping[str, Any], known: Mapping[str, Option], where: str, otherwise: str | None = None
) -> dict[str, Any]:
    """Return values by option name, in the types of their options instead of TOML's.

    Args:
        values: Values by option name.
        known: The options that are allowed.
        where: Name of the file or place of the values, for messages.
        otherwise: Advice about an unknown option that resembles none; a list of all by default.

    Raises:
        LoLDUError: If an option is unknown, or a value has the wrong type.
    """
    for name in values:
        if name not in known:
            perhaps = hint(name, known, otherwise)
            raise LoLDUError(f"{where} has the unknown key {name}; {perhaps}.")
    converted: dict[str, Any] = {}
    for name, value in values.items():
        kind = known[name].type
        try:
            converted[name] = _convert(value, kind)
        except TypeError as error:
            raise LoLDUError(
                f"{where}: {name} is {value!r}; it must be {_description(kind)}."
            ) from error
    return converted


def toml_value(value: Any) -> Any:  # noqa: ANN401
    """Return the value of an option as TOML has it: paths as strings, tuples as lists."""
    if isinstance(value, list | tuple):
        return [toml_value(each) for each in cast(Sequence[Any], value)]
    return str(value) if isinstance(value, Path) else value


def _convert(value: Any, kind: Any) -> Any:  # noqa: ANN401
    """Raises TypeError if a TOML value does not fit the type of an option."""
    origin, choices = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        for each in choices:
            try:
                return _convert(value, each)
            except TypeError:
                continue
    elif origin is Literal and value in choices:
        return value
    elif origin is tuple:
        listed = cast(Sequence[Any], value if isinstance(value, list | tuple) else [value])
        return tuple(_convert(each, choices[0]) for each in listed)
    elif kind is Path and isinstance(value, str | Path):
        return Path(value)
    elif kind is str and isinstance(value, str | Path):
        return str(value)
    elif kind is float and type(value) in (int, float):
        return float(value)
    elif type(value) is kind:
        return value
    raise TypeError(kind)


def _description(kind: Any) -> str:  # noqa: ANN401
    origin, choices = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(_description(each) for each in choices if each is not NoneType)
    if origin is Literal:
        return " or ".join(str(each) for each in choices)
    if origin is tuple:
        return f"a list, each {_description(choices[0])}"
    names = {int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    return names.get(kind, "a string")
