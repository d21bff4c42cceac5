"""The words of concepts in a prompt, and the part of a prompt that a base reads."""

import re
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from webui.drawing.facts import TOKEN, Facts

_SHOWN_CUT = 300


def lacking(prompt: str, concepts: Sequence[Facts], *, each: bool) -> list[Facts]:
    """Return the concepts whose rare word is not in the prompt."""
    prompts = [for_one(prompt, one, concepts) if each else prompt for one in concepts]
    return [
        one
        for one, text in zip(concepts, prompts, strict=True)
        if one.about.token and TOKEN not in text and not has(text, one.about.token)
    ]


def put(prompt: str, concept: Facts, concepts: Sequence[Facts]) -> str:
    """Return a prompt with the words of a concept: on its class if it is there, or else at its end.

    Args:
        prompt: The prompt.
        concept: Concept whose words are put in.
        concepts: All chosen concepts; their words stay.
    """
    words, token = concept.words, concept.about.token
    if not words or not token or has(prompt, token):
        return prompt
    rare = {one.about.token for one in concepts}
    if concept.about.class_name:
        for found in _whole(concept.about.class_name).finditer(prompt):
            before = prompt[: found.start()].split()
            if not before or before[-1] not in rare:
                return f"{prompt[: found.start()]}{words}{prompt[found.end() :]}"
    return f"{prompt.rstrip()} and a {words}" if prompt.strip() else f"a photo of a {words}"


def take_out(prompt: str, concept: Facts) -> str:
    """Return a prompt with only the class of a concept in the place of its words."""
    if not concept.words:
        return prompt
    return _whole(concept.words).sub(lambda _: concept.about.class_name or "", prompt)


def for_one(prompt: str, concept: Facts, concepts: Sequence[Facts]) -> str:
    """Return a prompt of several concepts with the words of one of them in place of the others'."""
    if not concept.words or not concept.about.token:
        return prompt
    for other in concepts:
        if not other.words or other.words == concept.words or not has(prompt, other.words):
            continue
        if has(prompt, concept.about.token):
            joined = f" and a {re.escape(other.words)}|{re.escape(other.words)} and a "
            prompt = re.sub(joined, "", prompt, count=1)
        prompt = _whole(other.words).sub(lambda _: concept.words or "", prompt)
    return prompt


def reworded(prompt: str, facts: Sequence[Facts], left: Sequence[Facts]) -> str:
    """Return a person's prompt with the words of the chosen concepts, without those that left."""
    for one in left:
        prompt = take_out(prompt, one)
    for one in facts:
        if TOKEN not in prompt:
            prompt = put(prompt, one, facts)
    return prompt


def describe_prompt(
    base: str, prompt: str, concepts: Sequence[Facts], missing: Sequence[Facts]
) -> str:
    """Return as HTML how much of a prompt is read, and which concepts it does not call."""
    chunks = max((one.about.prompt_chunks for one in concepts), default=1)
    said = ""
    for one in missing:
        said += f"<p>“{escape(one.words or '')}” is not in your prompt, so it is not drawn.</p>"
    if prompt.strip() and (read := read_of(base, prompt, chunks)):
        count, most, cut = read
        said += f'<p class="count">{min(count, most)} of {most} tokens</p>'
        if cut:
            said += f'<p class="cut">Too long. Not read: <s>{escape(cut[:_SHOWN_CUT])}</s></p>'
    return said


def read_of(base: str, prompt: str, chunks: int = 1) -> tuple[int, int, str] | None:
    """Return a prompt's tokens, how many of them the base reads, and the text that it leaves out.

    Chunks may end before a comma, so a prompt of several can be cut a little sooner.

    Returns:
        None if the tokenizer of the base is not on this machine.
    """
    tokenizer = _tokenizer(base)
    if tokenizer is None:
        return None
    most = chunks * (tokenizer.model_max_length - tokenizer.num_special_tokens_to_add())
    read = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = read["offset_mapping"]
    return len(places), most, prompt[places[most][0] :] if len(places) > most else ""


@lru_cache(maxsize=4)
def _tokenizer(base: str) -> Any:  # noqa: ANN401  transformers has no type for all of them
    place: dict[str, Any] = {"local_files_only": True, "use_fast": True}
    local = Path(base) / "tokenizer"
    try:
        if local.is_dir():
            return AutoTokenizer.from_pretrained(local, **place)
        return AutoTokenizer.from_pretrained(base, subfolder="tokenizer", **place)
    except (OSError, ValueError):
        return None


def has(prompt: str, words: str) -> bool:
    """Return whether a prompt has these words as whole words, in any case."""
    return _whole(words).search(prompt) is not None


def _whole(words: str) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w){re.escape(words)}(?!\w)", re.IGNORECASE)
