import pytest

from loldu.prompts import class_after, likely_token_and_class, token_and_class


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
def test_token_and_class_are_distinguished_or_unknown(
    instance_prompt: str, class_prompts: list[str], expected: tuple[str, str] | None
) -> None:
    assert token_and_class(instance_prompt, class_prompts) == expected


@pytest.mark.parametrize(
    ("token", "expected"),
    [("sks", "teddy bear"), ("a sks", "teddy bear"), ("bear", ""), ("sk", None), ("zwx", None)],
)
def test_the_class_follows_the_token(token: str, expected: str | None) -> None:
    assert class_after("a photo of a sks teddy bear", token) == expected


@pytest.mark.parametrize(
    ("prompt", "class_prompts", "expected"),
    [
        ("a photo of sks dog", [], ("sks", "dog")),
        ("A photo of a [V] teddy-bear, on grass", [], ("v", "teddy-bear")),
        ("a red sks dog", ["a red dog"], ("sks", "dog")),
        ("sks red dog", ["a photo of a dog"], ("sks red", "dog")),  # as in the concept file
        ("sks dog in red", ["a photo of a dog"], ("sks", "dog")),
        ("a sks teddy bear", ["a teddy bear", "a car"], ("sks", "teddy bear")),
        ("a photo of a 猫", [], ("猫", None)),
        ("a photo of the", [], (None, None)),
    ],
)
def test_token_and_class(
    prompt: str, class_prompts: list[str], expected: tuple[str | None, str | None]
) -> None:
    assert likely_token_and_class(prompt, class_prompts) == expected


@pytest.mark.parametrize(
    ("prompt", "token", "expected"),
    [
        ("a red Sks dog", "Sks", ("Sks", "dog")),
        ("a photo of [V] dog, asleep", "[V]", ("[V]", "dog asleep")),
        ("a photo of a sks", "sks", ("sks", None)),
        ("a dog", "sks", ("sks", None)),
    ],
)
def test_a_given_token_is_not_guessed(
    prompt: str, token: str, expected: tuple[str | None, str | None]
) -> None:
    assert likely_token_and_class(prompt, ["a dog"], token) == expected
