"""Prompts: filled templates, and the rare token in or out of them."""

from collections.abc import Sequence

from eval.errors import EvalError


def fill(templates: Sequence[str], token: str, class_name: str) -> list[str]:
    """Return the templates with `{token}` and `{class_name}` filled in.

    Raises:
        EvalError: If a template has another placeholder.
    """
    try:
        return [text.format(token=token, class_name=class_name) for text in templates]
    except (KeyError, IndexError, ValueError) as error:
        raise EvalError(
            "A prompt has a placeholder that is neither {token} nor {class_name} "
            f"({type(error).__name__}: {error}); correct --prompts and --other_prompts."
        ) from error


def without_token(prompt: str, token: str) -> str:
    """Return the prompt without the rare token, which means nothing to CLIP."""
    rare = token.split()
    words = prompt.split()
    kept: list[str] = []
    while words:
        if words[: len(rare)] == rare:
            del words[: len(rare)]
        else:
            kept.append(words.pop(0))
    return " ".join(kept)


def token_and_class(instance_prompt: str, class_prompts: Sequence[str]) -> tuple[str, str]:
    """Return what the concept is called: "a photo of a sks toy", "a photo of a toy": sks, toy.

    The token is the one run of words that a class prompt lacks, the class is what follows it.

    Raises:
        EvalError: If no class prompt tells the two apart.
    """
    words = instance_prompt.split()
    found: list[tuple[str, str]] = []
    for class_prompt in class_prompts:
        new = [index for index, word in enumerate(words) if word not in class_prompt.split()]
        if new and new[-1] - new[0] == len(new) - 1 and words[new[-1] + 1 :]:
            found.append((" ".join(words[new[0] : new[-1] + 1]), " ".join(words[new[-1] + 1 :])))
    if not found:
        raise EvalError(
            "The prompts of the training do not tell the rare token and the class apart; give "
            "both, such as --token sks --class_name toy."
        )
    return min(found, key=lambda pair: len(pair[0]))
