"""Prompts: filled templates, and what they call the concept."""

from collections.abc import Sequence

from loldu import prompts
from loldu.errors import LoLDUError


def fill(templates: Sequence[str], token: str, class_name: str) -> list[str]:
    """Return the templates with `{token}` and `{class_name}` filled in.

    Raises:
        LoLDUError: If a template has another placeholder.
    """
    filled = []
    for text in templates:
        try:
            filled.append(text.format(token=token, class_name=class_name))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise LoLDUError(
                f'The prompt "{text}" has a placeholder that is neither {{token}} nor '
                f"{{class_name}} ({type(error).__name__}: {error}); correct it."
            ) from error
    return filled


def token_and_class(instance_prompt: str, class_prompts: Sequence[str]) -> tuple[str, str]:
    """Return what the concept is called, as `loldu.prompts` tells it.

    Raises:
        LoLDUError: If no class prompt tells the two apart.
    """
    told = prompts.token_and_class(instance_prompt, class_prompts)
    if told is None:
        raise LoLDUError(
            "The prompts of the training do not tell the rare token and the class apart; give "
            "both, such as --token sks --class_name toy."
        )
    return told
