"""Prompts: fill in token and class, remove the rare token, find token and class."""

import pytest

from eval.protocols.prompts import context_of, fill, token_and_class
from loldu.errors import LoLDUError
from loldu.prompts import without_token


def test_fill_puts_token_and_class_in() -> None:
    assert fill(["a {token} {class_name}", "a car"], "sks", "toy") == ["a sks toy", "a car"]


@pytest.mark.parametrize("template", ["a {colour} toy", "a {} toy", "a {token toy", "a {token[x]}"])
def test_other_placeholders_are_refused(template: str) -> None:
    with pytest.raises(LoLDUError, match=r"neither \{token\} nor \{class_name\}"):
        fill([template], "sks", "toy")


@pytest.mark.parametrize(
    ("prompt", "token", "expected"),
    [
        ("a photo of a sks toy on grass", "sks", "a photo of a toy on grass"),
        ("a photo of sks", "sks", "a photo of"),
        ("a sksy toy", "sks", "a sksy toy"),
        ("a new sks toy", "new sks", "a toy"),
        ("sks sks toy", "sks", "toy"),
    ],
)
def test_the_token_is_taken_out_as_a_word(prompt: str, token: str, expected: str) -> None:
    assert without_token(prompt, token) == expected


@pytest.mark.parametrize(
    ("instance_prompt", "class_prompts", "expected"),
    [
        ("a photo of a sks toy", ["a photo of a toy"], ("sks", "toy")),
        ("a photo of sks dog", ["a photo of a dog"], ("sks", "dog")),
        (
            "a photo of a sks teddy bear",
            ["a red car", "a photo of a teddy bear"],
            ("sks", "teddy bear"),
        ),
        ("a photo of a sks toy", ["a photo of a toy on grass", "a photo of a car"], ("sks", "toy")),
    ],
)
def test_token_and_class_are_distinguished(
    instance_prompt: str, class_prompts: list[str], expected: tuple[str, str]
) -> None:
    assert token_and_class(instance_prompt, class_prompts) == expected


@pytest.mark.parametrize("class_prompts", [[], ["a photo of a car"], ["a photo of a sks toy"]])
def test_ambiguous_prompts_are_refused(class_prompts: list[str]) -> None:
    with pytest.raises(LoLDUError, match="--token"):
        token_and_class("a photo of a sks toy", class_prompts)


@pytest.mark.parametrize(
    ("prompt", "token", "class_name", "expected"),
    [
        ("a photo of a sks dog on grass", "sks", "dog", "a photo on grass"),
        ("a sks dog in the snow", "sks", "dog", "in the snow"),
        ("a red sks dice plushie", "sks", "dice plushie", "a red"),
        ("A Dog, and a dogma", None, "dog", "and a dogma"),
        ("a sks dog beside the sks dog", "sks", "dog", "beside"),
        ("a photo of my dog.", "sks", "dog", "a photo"),
        ("sks dog", "sks", "dog", "a photo"),
    ],
)
def test_the_context_is_the_prompt_without_its_subject(
    prompt: str, token: str | None, class_name: str, expected: str
) -> None:
    assert context_of(prompt, token, class_name) == expected
