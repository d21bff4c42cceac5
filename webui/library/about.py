"""What a concept file says of itself, as text that a page may show; the file may say anything."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from loldu import Concept, read_concept
from loldu.errors import LoLDUError
from loldu.prompts import token_and_class

_TEXT_LENGTH = 200
SCORES = {"dino": "DINO", "clip_i": "CLIP-I", "clip_t": "CLIP-T", "drift": "drift"}


@dataclass(frozen=True)
class About:
    """A concept in words and numbers; None for what is not told.

    Attributes:
        base: The name of the model that it changes.
        token: The rare token.
        class_name: What kind of thing it is.
        prompt: A prompt that asks for it.
        method: How it was trained.
        steps: For how long.
        scores: What was measured at its last step, by name.
        layers: How many it changes.
        numbers: How many it holds.
        bytes: The size of its file.
    """

    base: str
    token: str | None
    class_name: str | None
    prompt: str | None
    method: str | None
    steps: int | None
    scores: Mapping[str, float]
    layers: int
    numbers: int
    bytes: int

    @property
    def called(self) -> str | None:
        """Token and class, as a prompt has them."""
        return " ".join(word for word in (self.token, self.class_name) if word) or None

    def fits(self, base: str) -> bool:
        """Whether it says that it was made for a base, which loading will see for certain."""
        place = Path(base)
        return self.base in (base, place.name, place.resolve().name)


def about(path: Path) -> About:
    """Read a concept file; one that has not changed since is read once.

    Raises:
        LoLDUError: it is gone.
        ConceptError: it is not a sound concept.
    """
    try:
        now = path.stat()
    except OSError as error:
        raise LoLDUError("The file of this concept is gone; reload the page.") from error
    return _read(path, now.st_mtime_ns, now.st_size)


@lru_cache(maxsize=1024)
def _read(path: Path, mtime_ns: int, size: int) -> About:
    return describe(read_concept(path), size)


def describe(concept: Concept, size: int) -> About:
    """What a concept says, of a file of so many bytes."""
    told = concept.metadata
    steps, scores = told.get("steps"), told.get("scores")
    prompt, token = _text(told.get("instance_prompt")), _text(told.get("token"))
    class_name = _text(told.get("class_name"))
    if prompt and not token and isinstance(listed := told.get("class_prompt"), list):
        texts = [text for text in listed if isinstance(text, str)]
        token, class_name = token_and_class(prompt, texts) or (None, class_name)
    return About(
        base=_text(concept.base) or "",
        token=token,
        class_name=class_name,
        prompt=prompt,
        method=_text(told.get("method")),
        steps=steps if type(steps) is int else None,
        scores=_scores(scores) if isinstance(scores, dict) else {},
        layers=len(concept.layers),
        numbers=sum(layer.delta.numel() for layer in concept.layers),
        bytes=size,
    )


def _text(value: object) -> str | None:
    """One line of letters, and not too many."""
    if not isinstance(value, str):
        return None
    printable = "".join(letter if letter.isprintable() else " " for letter in value)
    return " ".join(printable.split())[:_TEXT_LENGTH] or None


def _scores(told: dict[str, Any]) -> dict[str, float]:
    numbers = {name: told[name] for name in SCORES if type(told.get(name)) in (int, float)}
    return {name: float(value) for name, value in numbers.items() if math.isfinite(value)}
