"""Prompts: templates filled in, the words for the concept, and the pictures to generate."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loldu import prompts
from loldu.errors import LoLDUError

_NUMBERED = re.compile(r"(\d+)-\d+")


@dataclass(frozen=True)
class PlannedPicture:
    """A picture to generate: its file, prompt and seed."""

    path: Path
    prompt: str
    seed: int


def plan_pictures(
    folder: Path, prompts: Sequence[str], seeds: Sequence[int]
) -> list[PlannedPicture]:
    """Plan every prompt with every seed, as `PROMPT-SEED.png`, ordered by seed."""
    return [
        PlannedPicture(folder / f"{number:03}-{seed}.png", prompt, seed)
        for seed in seeds
        for number, prompt in enumerate(prompts)
    ]


def prompt_number(path: Path) -> int | None:
    """Return the number of the prompt in the name `PROMPT-SEED.png`, or None for other names."""
    match = _NUMBERED.fullmatch(path.stem)
    return int(match[1]) if match else None


def context_of(prompt: str, token: str | None, class_name: str) -> str:
    """Return a prompt without the words for its subject, or "a photo" if nothing is left.

    "a photo of a sks dog on grass" gives "a photo on grass".
    """
    article, rare = r"(?:\b(?:an?|the|my|one)\s+)?", rf"(?:{re.escape(token)}\s+)?" if token else ""
    words = rf"(?:\bof\s+)?{article}{rare}\b{re.escape(class_name)}\b"
    left = " ".join(re.sub(words, " ", prompt, flags=re.IGNORECASE).split())
    return left.strip(" ,.") or "a photo"


def fill(templates: Sequence[str], token: str, class_name: str) -> list[str]:
    """Return the templates with `{token}` and `{class_name}` filled in.

    Raises:
        LoLDUError: If a template has another placeholder.
    """
    filled = []
    for text in templates:
        try:
            filled.append(text.format(token=token, class_name=class_name))
        except (LookupError, ValueError, AttributeError, TypeError) as error:
            raise LoLDUError(
                f'The prompt "{text}" has a placeholder that is neither {{token}} nor '
                f"{{class_name}} ({type(error).__name__}: {error})."
            ) from error
    return filled


def token_and_class(instance_prompt: str, class_prompts: Sequence[str]) -> tuple[str, str]:
    """Return the rare token and the class word, which `loldu.prompts` derives from the prompts.

    Raises:
        LoLDUError: If they cannot be derived.
    """
    found = prompts.token_and_class(instance_prompt, class_prompts)
    if found is None:
        raise LoLDUError(
            "The rare token and the class cannot be derived from the training prompts; give both, "
            "such as --token sks --class_name toy."
        )
    return found
