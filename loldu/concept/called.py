"""The words of prompts as a tokenizer sees them, and the concepts that they call."""

# transformers is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loldu.adapter.components import adapted_layers


def called_by(
    pipeline: Any,  # noqa: ANN401
    texts: list[str],
    second: str | Sequence[str] | None,
) -> list[dict[str, float]]:
    """Return the concepts of every picture's text, and of its text for a second encoder."""
    words, more = words_as_read(pipeline), listed(second or texts, len(texts))
    both = zip(as_read(pipeline, texts), as_read(pipeline, more), strict=True)
    own = pipeline.routing.strengths(len(texts))
    return [
        called(words, one, factors) | called(words, other, factors)
        for (one, other), factors in zip(both, own, strict=True)
    ]


def called(
    words: Mapping[str, str | None], said: str, factors: Mapping[str, float | int] | None
) -> dict[str, float]:
    """Return the concepts that act on a prompt: those that it calls, and those always on."""
    return {
        name: 1.0 if factors is None else float(factors.get(name, 0.0))
        for name, word in words.items()
        if word is None or re.search(rf"(?<!\w){re.escape(word)}(?!\w)", said)
    }


def words_as_read(pipeline: Any) -> dict[str, str | None]:  # noqa: ANN401
    """Return the words of the loaded concepts of a routed pipeline, by adapter name."""
    loaded = {name for layer in adapted_layers(pipeline) for name in layer.r}
    return {
        name: None if text is None else as_read(pipeline, [text])[0]
        for name, text in pipeline.routing.words.items()
        if name in loaded
    }


def as_read(pipeline: Any, texts: Sequence[str]) -> list[str]:  # noqa: ANN401
    """Return texts as the text encoder reads them: lower-cased and cut at its length."""
    tokenizer = pipeline.tokenizer
    # A tokenizer without a limit says 1e30, which is no length.
    length = min(tokenizer.model_max_length, 1_000_000) * getattr(pipeline, "prompt_chunks", 1)
    return decoded(tokenizer, tokenizer([*texts], truncation=True, max_length=length).input_ids)


def decoded(tokenizer: Any, token_ids: Any) -> list[str]:  # noqa: ANN401
    """Join the pieces of token ids; every tokenizer marks the ends of words in its own way."""
    added = tokenizer.get_added_vocab()
    rows = (tokenizer.convert_ids_to_tokens(row, skip_special_tokens=True) for row in token_ids)
    texts = ("".join(f" {y} " if y in added else y for y in pieces) for pieces in rows)
    return [" ".join(re.sub("</w>|\u2581|\u0120", " ", text).lower().split()) for text in texts]


def listed(texts: str | Sequence[str], count: int) -> list[str]:
    """Return texts as a list; one text stands for all."""
    return [texts] * count if isinstance(texts, str) else list(texts)
