"""Metadata of a concept file, made safe for the page; the file may be hostile."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from eval.metrics import headline_metrics
from loldu import Concept, read_concept
from loldu.base.record import read_as
from loldu.errors import LoLDUError
from loldu.prompts import token_and_class

_TEXT_LENGTH = 200


@dataclass(frozen=True)
class About:
    """Metadata of a concept; None if unknown.

    Attributes:
        base: Name of the base model.
        token: Rare token.
        class_name: Class, such as dog.
        prompt: Prompt of the training pictures.
        prompt_chunks: Chunks of the text encoder's length that it reads of a prompt.
        method: Training method.
        steps: Training steps.
        scores: Scores at the last step, by title.
        layers: Number of changed layers.
        numbers: Number of trained values.
        bytes: Size of the file.
    """

    base: str
    token: str | None
    class_name: str | None
    prompt: str | None
    prompt_chunks: int
    method: str | None
    steps: int | None
    scores: Mapping[str, float]
    layers: int
    numbers: int
    bytes: int

    @property
    def called(self) -> str | None:
        """Token and class as in a prompt, or None."""
        return " ".join(word for word in (self.token, self.class_name) if word) or None

    def fits(self, base: str) -> bool:
        """Return whether the metadata names this base; loading checks the weights."""
        place = Path(base)
        return self.base in (base, place.name, place.resolve().name)


def about(path: Path) -> About:
    """Read the metadata of a concept file; unchanged files are cached.

    Raises:
        LoLDUError: If the file is gone.
        ConceptError: If the file is damaged.
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
    """Return the metadata of a concept whose file has `size` bytes."""
    metadata = concept.metadata
    steps, scores = metadata.get("steps"), metadata.get("scores")
    prompt, token = _text(metadata.get("instance_prompt")), _text(metadata.get("token"))
    class_name = _text(metadata.get("class_name"))
    if prompt and not token and isinstance(listed := metadata.get("class_prompt"), list):
        texts = [text for text in cast(list[Any], listed) if isinstance(text, str)]
        token, class_name = token_and_class(prompt, texts) or (None, class_name)
    return About(
        base=_text(concept.base) or "",
        token=token,
        class_name=class_name,
        prompt=prompt,
        prompt_chunks=read_as(concept).get("prompt_chunks", 1),
        method=_text(metadata.get("method")),
        steps=steps if type(steps) is int else None,
        scores=_scores(cast(dict[str, Any], scores)) if isinstance(scores, dict) else {},
        layers=len(concept.layers),
        numbers=sum(layer.delta.numel() for layer in concept.layers),
        bytes=size,
    )


def _text(value: object) -> str | None:
    """Return a string as one printable line of at most 200 characters, or None."""
    if not isinstance(value, str):
        return None
    printable = "".join(letter if letter.isprintable() else " " for letter in value)
    return " ".join(printable.split())[:_TEXT_LENGTH] or None


def _scores(scores: dict[str, Any]) -> dict[str, float]:
    numbers = ((metric.title, scores.get(metric.name)) for metric in headline_metrics())
    return {
        title: float(value)
        for title, value in numbers
        if isinstance(value, int | float) and type(value) is not bool and math.isfinite(value)
    }
