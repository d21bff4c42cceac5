"""What a concept says of itself, and what to ask for to have it drawn."""

import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from loldu import ConceptError
from loldu.base.record import CONFIG
from loldu.errors import LoLDUError
from webui.library.about import About, about
from webui.library.entry import Entry

TOKEN, CLASS = "{token}", "{class}"
"""In a prompt, what each concept has a word of its own for."""


@dataclass(frozen=True)
class Facts:
    """A concept, what its file says, and how its own run drew; None for what is not known."""

    name: str
    about: About
    num_inference_steps: int | None
    guidance_scale: float | int | None

    @property
    def words(self) -> str | None:
        """What to ask for: the rare token and the class."""
        return self.about.called if self.about.token else None


@contextmanager
def called(entry: Entry) -> Iterator[None]:
    """Let errors call a concept what the page calls it, and not by where it lies."""
    try:
        yield
    except ConceptError as error:
        raise ConceptError(str(error).replace(str(entry.path), entry.name)) from error


def facts_of(entry: Entry) -> Facts:
    """Read what a concept file says.

    Raises:
        ConceptError: it is not a sound one.
    """
    with called(entry):
        told = about(entry.path)
    drawn = _run_section(entry.path.with_name(CONFIG))
    return Facts(entry.name, told, drawn.get("num_inference_steps"), drawn.get("guidance_scale"))


def describe(concepts: Sequence[Facts]) -> str:
    """The facts of concepts as HTML; what a file says is shown as text."""
    return "".join(
        '<dl class="facts">'
        + "".join(
            f"<div><dt>{term}</dt><dd>{escape(told)}</dd></div>"
            for term, told in {
                "Concept": facts.name,
                "Prompt": facts.about.prompt or "not told",
                "Made for": facts.about.base or "not told",
                "Layers": f"{facts.about.layers:,}",
                "Numbers": f"{facts.about.numbers:,}",
                "File": f"{facts.about.bytes:,} bytes",
            }.items()
        )
        + "</dl>"
        for facts in concepts
    )


def suggestion(concepts: Sequence[Facts], *, each: bool) -> str:
    """A prompt to begin with: the first concept's own, with all of them in its place.

    Args:
        concepts: What is to be drawn.
        each: Whether in a picture of its own, for which the words are left open.
    """
    if not concepts:
        return ""
    prompt, own = concepts[0].about.prompt or "", concepts[0].words
    if not own or len(concepts) == 1:
        return prompt
    if each:
        return prompt.replace(own, " ".join(open_words(concepts)))
    return prompt.replace(own, " and a ".join(facts.words for facts in concepts if facts.words))


def open_words(concepts: Sequence[Facts]) -> list[str]:
    """The placeholders that all of several concepts have words for."""
    with_class = all(facts.about.class_name for facts in concepts)
    return [TOKEN, CLASS] if with_class else [TOKEN]


def filled(prompt: str, concepts: Sequence[Facts]) -> str:
    """A prompt with the words of the concept of a picture in place of the placeholders.

    Raises:
        LoLDUError: there is not one concept, or it does not tell the word.
    """
    for placeholder in (TOKEN, CLASS):
        if placeholder not in prompt:
            continue
        if len(concepts) != 1:
            raise LoLDUError(
                f"{placeholder} in the prompt stands for the word of one concept: choose one, or "
                "one in each picture."
            )
        told = concepts[0].about
        word = told.token if placeholder == TOKEN else told.class_name
        if not word:
            raise LoLDUError(
                f"{concepts[0].name} does not tell a word for {placeholder}: write the prompt "
                "without it."
            )
        prompt = prompt.replace(placeholder, word)
    return prompt


def _run_section(config: Path) -> dict[str, Any]:
    """How the run drew whose folder a concept still lies in."""
    if not config.is_file():
        return {}
    return tomllib.loads(config.read_text(encoding="utf-8")).get("run", {})
