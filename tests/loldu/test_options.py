"""Facts and values of options, on a config of two sections."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from loldu.errors import LoLDUError
from loldu.options import build, limit_problems, option, options, typed_values, values_of


@dataclass(frozen=True)
class Size:
    side: int = option(16, at_least=8, multiple_of=8)
    share: float = option(0.5, above=0, below=1)
    weight: float | None = option(None, at_least=0, at_most=1, resume="same")


@dataclass(frozen=True, kw_only=True)
class Toy:
    size: Size = field(default_factory=Size, metadata={"resume": "may_change", "saved": False})
    rank: int | Literal["full"] = option(4, at_least=1)
    names: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1,)
    folder: Path
    flip: bool = False


def test_a_field_states_facts_and_overrides_those_of_its_section() -> None:
    known = options(Toy)
    assert list(known) == ["side", "share", "weight", "rank", "names", "seeds", "folder", "flip"]
    assert [known[name].section for name in ("side", "rank")] == ["size", ""]
    assert [known[name].resume for name in ("side", "weight")] == ["may_change", "same"]
    assert not known["weight"].saved
    assert known["rank"].saved


def test_a_misspelt_fact_fails_where_it_is_written() -> None:
    with pytest.raises(TypeError, match="at_leats"):
        option(1, at_leats=0)


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"side": 8, "share": 0.1, "weight": 0, "rank": "full"}, None),
        ({"weight": 1}, None),
        ({"side": 0}, "--side is 0; it must be at least 8 and a multiple of 8."),
        ({"side": 12}, "--side is 12; it must be at least 8 and a multiple of 8."),
        ({"share": 0.0}, "--share is 0.0; it must be above 0 and below 1."),
        ({"share": 1.0}, "--share is 1.0; it must be above 0 and below 1."),
        ({"share": float("nan")}, "--share is nan; it must be above 0 and below 1."),
        ({"weight": 1.5}, "--weight is 1.5; it must be at least 0 and at most 1."),
        ({"weight": float("nan")}, "--weight is nan; it must be at least 0 and at most 1."),
        ({"rank": 0}, "--rank is 0; it must be at least 1."),
    ],
)
def test_limits(values: dict[str, Any], problem: str | None) -> None:
    config = build(Toy, {"folder": Path("a"), **values})
    assert list(limit_problems(config)) == ([problem] if problem else [])


def test_values_of_toml_become_those_of_the_options() -> None:
    values = {
        "rank": "full",
        "share": 1,
        "names": "a",
        "seeds": [1, 2],
        "folder": "b",
        "flip": True,
    }
    typed = typed_values(values, options(Toy), "The file")
    assert typed == values | {"names": ("a",), "seeds": (1, 2), "folder": Path("b")}
    assert isinstance(typed["share"], float)
    config = build(Toy, typed)
    assert values_of(config) == {"side": 16, "share": 1.0, "weight": None, **typed}


@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("rank", "all", "a whole number or full"),
        ("rank", True, "a whole number or full"),
        ("side", 8.0, "a whole number"),
        ("share", "0.5", "a number"),
        ("weight", [1], "a number"),
        ("names", [1], "a list, each a string"),
        ("seeds", "one", "a list, each a whole number"),
        ("folder", 1, "a path"),
        ("flip", "yes", "true or false"),
    ],
)
def test_a_value_of_another_type_is_named(name: str, value: object, wanted: str) -> None:
    with pytest.raises(LoLDUError) as refused:
        typed_values({name: value}, options(Toy), "The file")
    assert str(refused.value) == f"The file: {name} is {value!r}; it must be {wanted}."


def test_an_unknown_option_gets_the_nearest_name() -> None:
    with pytest.raises(LoLDUError, match=r"The file has the unknown key flipp; .*meant flip\."):
        typed_values({"flipp": True}, options(Toy), "The file")
