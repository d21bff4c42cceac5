"""Facts about concepts for Play, and prompts that ask for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeGuard

from loldu.errors import LoLDUError
from webui.drawing.settings import GUIDANCE, STEPS
from webui.library.about import About, about
from webui.library.entry import Entry, named_errors

TOKEN, CLASS = "{token}", "{class}"
"""Placeholders in a prompt for the words of a concept."""


@dataclass(frozen=True)
class Facts:
    """A concept, its metadata, and the drawing options of its run; None if unknown."""

    name: str
    about: About
    num_inference_steps: int | None
    guidance_scale: float | int | None

    @property
    def words(self) -> str | None:
        """Token and class, or None without a token."""
        return self.about.called if self.about.token else None


def facts_of(entry: Entry) -> Facts:
    """Read a concept file.

    Raises:
        ConceptError: If the file is damaged.
    """
    with named_errors(entry.path, entry.name):
        metadata = about(entry.path)
    steps, guidance = (entry.run.get(name) for name in ("num_inference_steps", "guidance_scale"))
    return Facts(
        entry.name,
        metadata,
        steps if type(steps) is int and _is_in(STEPS, steps) else None,
        guidance if _is_in(GUIDANCE, guidance) else None,
    )


def describe(concepts: Sequence[Facts]) -> str:
    """Return the facts of concepts as HTML; metadata is escaped."""
    from webui.page import term_list  # loads gradio, which the server of pictures does without

    return "".join(
        term_list(
            {
                "Concept": facts.name,
                "Prompt": facts.about.prompt or "unknown",
                "Acts": f"where a prompt has “{facts.about.token}”; other pictures stay the base's"
                if facts.about.token
                else "in every picture: it has no word",
                "Made for": facts.about.base or "unknown",
                "Layers": f"{facts.about.layers:,}",
                "Numbers": f"{facts.about.numbers:,}",
                "File": f"{facts.about.bytes:,} bytes",
            }
        )
        for facts in concepts
    )


def suggestion(concepts: Sequence[Facts], *, each: bool) -> str:
    """Return a prompt to start from: the first concept's own, extended to all concepts.

    Args:
        concepts: Concepts to draw.
        each: Whether each concept gets its own pictures; the prompt then has placeholders.
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
    """Return the placeholders that all concepts have words for."""
    with_class = all(facts.about.class_name for facts in concepts)
    return [TOKEN, CLASS] if with_class else [TOKEN]


def filled(prompt: str, concepts: Sequence[Facts]) -> str:
    """Return a prompt with the placeholders replaced by the words of the concept.

    Raises:
        LoLDUError: If there is not exactly one concept, or it lacks the word.
    """
    for placeholder in (TOKEN, CLASS):
        if placeholder not in prompt:
            continue
        if len(concepts) != 1:
            raise LoLDUError(
                f"{placeholder} in the prompt stands for the word of one concept: choose one, or "
                "one in each picture."
            )
        known = concepts[0].about
        word = known.token if placeholder == TOKEN else known.class_name
        if not word:
            raise LoLDUError(
                f"{concepts[0].name} has no word for {placeholder}: write the prompt without it."
            )
        prompt = prompt.replace(placeholder, word)
    return prompt


def _is_in(limits: tuple[float | int, float | int], value: Any) -> TypeGuard[float | int]:  # noqa: ANN401
    return type(value) in (int, float) and limits[0] <= value <= limits[1]
