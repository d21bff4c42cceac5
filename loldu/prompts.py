"""What a concept is called: the rare token and the class, told from the prompts."""

from collections.abc import Sequence


def token_and_class(instance_prompt: str, class_prompts: Sequence[str]) -> tuple[str, str] | None:
    """The rare token and the class: "a photo of a sks toy", "a photo of a toy": sks, toy.

    The token is the one run of words that a class prompt lacks, the class is what follows it. Of
    several answers the one with the shortest token counts; there is none where no class prompt
    tells the two apart.
    """
    words = instance_prompt.split()
    found: list[tuple[str, str]] = []
    for class_prompt in class_prompts:
        new = [index for index, word in enumerate(words) if word not in class_prompt.split()]
        if new and new[-1] - new[0] == len(new) - 1 and words[new[-1] + 1 :]:
            found.append((" ".join(words[new[0] : new[-1] + 1]), " ".join(words[new[-1] + 1 :])))
    return min(found, key=lambda pair: len(pair[0]), default=None)


def class_after(prompt: str, token: str) -> str | None:
    """What follows the token in a prompt, perhaps nothing; none if the token is not in it."""
    words, rare = prompt.split(), token.split()
    for start in range(len(words)):
        if words[start : start + len(rare)] == rare:
            return " ".join(words[start + len(rare) :])
    return None


def without_token(prompt: str, token: str) -> str:
    """The prompt without the rare token, which means nothing to CLIP."""
    rare = token.split()
    words = prompt.split()
    kept: list[str] = []
    while words:
        if words[: len(rare)] == rare:
            del words[: len(rare)]
        else:
            kept.append(words.pop(0))
    return " ".join(kept)
