"""The words of concepts in a prompt."""

from dataclasses import replace
from pathlib import Path

import pytest

from tests.webui.concepts import entry_of
from webui.drawing.facts import Facts, facts_of
from webui.drawing.words import describe_prompt, for_one, lacking, put, read_of, reworded, take_out


@pytest.fixture
def toys(runs: Path) -> list[Facts]:
    """Return two toys of other words, sks and zwx, and a house."""
    known = facts_of(entry_of(runs / "rabbit"))
    words = (("sks", "toy"), ("zwx", "toy"), ("dax", "house"))
    return [
        replace(known, about=replace(known.about, token=token, class_name=class_name))
        for token, class_name in words
    ]


def test_words_take_the_place_of_the_class_or_come_last(toys: list[Facts]) -> None:
    sks, zwx, dax = toys
    assert put("a toy in the snow", sks, [sks]) == "a sks toy in the snow"
    assert put("a Toy, a toyshop", sks, [sks]) == "a sks toy, a toyshop"
    assert put("a sks toy", zwx, toys) == "a sks toy and a zwx toy"
    assert put("a sks toy beside a toy", zwx, toys) == "a sks toy beside a zwx toy"
    assert put("snow", dax, toys) == "snow and a dax house"
    assert put(" ", dax, toys) == "a photo of a dax house"
    assert put("a SKS thing", sks, [sks]) == "a SKS thing"
    assert reworded("a toy in snow", [sks, dax], []) == "a sks toy in snow and a dax house"
    assert reworded("a sks toy in snow", [zwx], [sks]) == "a zwx toy in snow"
    assert take_out("sks toys", sks) == "sks toys"


def test_each_picture_has_the_words_of_its_own_concept(toys: list[Facts]) -> None:
    sks, zwx, dax = toys
    prompt = "a sks toy in the snow"
    assert [for_one(prompt, one, toys) for one in toys] == [
        prompt,
        "a zwx toy in the snow",
        "a dax house in the snow",
    ]
    both = "a photo of a sks toy and a dax house at night"
    assert for_one(both, sks, [sks, dax]) == "a photo of a sks toy at night"
    assert for_one(both, dax, [sks, dax]) == "a photo of a dax house at night"
    assert lacking(prompt, toys, each=True) == []
    assert lacking(prompt, toys, each=False) == [zwx, dax]


def test_what_the_base_does_not_read_is_shown_struck_through(toys: list[Facts]) -> None:
    short, long = "a photo of a toy", " ".join(["toy"] * 28 + ["<b>snow", "and", "the", "End"])
    assert read_of("pocket/base", short) == (5, 30, "")
    count, most, cut = read_of("pocket/base", long) or (0, 0, "")
    assert count > most == 30
    assert long.endswith(cut)
    said = describe_prompt("pocket/base", long, [], [])
    assert "30 of 30 tokens" in said
    assert "<b>" not in said
    assert "End</s>" in said
    two = [replace(toys[0], about=replace(toys[0].about, prompt_chunks=2))]
    assert f"{count} of 60 tokens" in describe_prompt("pocket/base", long, two, [])
    assert "<s>" not in describe_prompt("pocket/base", short, [], [])
    assert read_of("nowhere/at-all", short) is None
    assert describe_prompt("nowhere/at-all", short, [], []) == ""
