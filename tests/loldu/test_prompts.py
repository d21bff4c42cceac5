import pytest

from loldu.prompts import class_after, token_and_class


@pytest.mark.parametrize(
    ("instance_prompt", "class_prompts", "expected"),
    [
        ("a photo of a sks toy", ["a photo of a toy"], ("sks", "toy")),
        ("a photo of sks dog", ["a photo of a dog"], ("sks", "dog")),
        ("a sks teddy bear", ["a red car", "a teddy bear"], ("sks", "teddy bear")),
        ("a photo of a sks toy", ["a photo of a toy on grass", "a photo of a car"], ("sks", "toy")),
        ("a photo of a sks toy", [], None),
        ("a photo of a sks toy", ["a photo of a car"], None),
        ("a photo of a sks toy", ["a photo of a sks toy"], None),
        ("", ["a toy"], None),
    ],
)
def test_token_and_class_are_told_apart_or_not_at_all(
    instance_prompt: str, class_prompts: list[str], expected: tuple[str, str] | None
) -> None:
    assert token_and_class(instance_prompt, class_prompts) == expected


@pytest.mark.parametrize(
    ("token", "expected"),
    [("sks", "teddy bear"), ("a sks", "teddy bear"), ("bear", ""), ("sk", None), ("zwx", None)],
)
def test_the_class_follows_the_token(token: str, expected: str | None) -> None:
    assert class_after("a photo of a sks teddy bear", token) == expected
