"""The words of prompts as a tokenizer sees them, and the concepts that they call."""

# transformers is typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

import re
from collections.abc import Mapping, Sequence
from typing import Any

from loldu.adapter.components import adapted_layers
from loldu.errors import ConceptError


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
        if word is None or re.search(_whole(word), said)
    }


def token_gates(
    pipeline: Any,  # noqa: ANN401
    texts: list[str],
    second: str | Sequence[str] | None,
    length: int,
) -> list[dict[str, list[float]]]:
    """Return how much each concept with words acts on every token of every text.

    That is 1 on its words, in the text or in that for a second encoder, and what the routing of the
    pipeline says on the other tokens.

    Raises:
        ConceptError: If the states of a text are not those of its tokens.
    """
    routing, words = pipeline.routing, words_as_read(pipeline)
    special = {*pipeline.tokenizer.all_special_ids} - {pipeline.tokenizer.bos_token_id}
    found: list[dict[str, list[float]]] = []
    for both in zip(texts, listed(second or texts, len(texts)), strict=True):
        rows = [_tokens(pipeline, text, length) for text in dict.fromkeys(both)]
        ends = [all(token in special for token in at) for at in zip(*rows, strict=True)]
        marks = {
            name: {place for row in rows for place in _places(pipeline.tokenizer, row, word)}
            for name, word in words.items()
            if word is not None
        }
        others = [routing.gate_end if is_end else routing.gate for is_end in ends]
        found.append(
            {
                name: [1.0 if i in own else other for i, other in enumerate(others)]
                for name, own in marks.items()
            }
        )
    return found


def _tokens(pipeline: Any, text: str, length: int) -> list[int]:  # noqa: ANN401
    """Return the tokens whose states a text becomes, padding included."""
    if hasattr(pipeline, "prompt_tokens"):
        tokens = pipeline.prompt_tokens(text)
    else:
        if hasattr(pipeline, "maybe_convert_prompt"):
            text = pipeline.maybe_convert_prompt(text, pipeline.tokenizer)
        options = {"padding": "max_length", "max_length": length, "truncation": True}
        tokens = pipeline.tokenizer(text, **options).input_ids
    times, left_over = divmod(length, len(tokens))
    if left_over:
        raise ConceptError(
            f"the gate needs one state for every token, and a {type(pipeline).__name__} makes "
            f"{length} states of {len(tokens)} tokens: call route_concepts with gate=1"
        )
    return tokens * times


def _places(tokenizer: Any, row: Sequence[int], word: str) -> set[int]:  # noqa: ANN401
    """Return the places of the tokens of words in a text."""
    text, owners = _spelled(tokenizer, row)
    return {
        place
        for match in re.finditer(_whole(word), text)
        for place in owners[match.start() : match.end()]
    }


def _whole(word: str) -> str:
    return rf"(?<!\w){re.escape(word)}(?!\w)"


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
    return [_spelled(tokenizer, row)[0] for row in token_ids]


def _spelled(tokenizer: Any, row: Any) -> tuple[str, list[int]]:  # noqa: ANN401
    """Return the text of token ids in lower case, and the place of the token of each letter."""
    added, special = tokenizer.get_added_vocab(), {*tokenizer.all_special_ids}
    ids = [int(token) for token in row]
    text, owners = "", list[int]()
    for place, (token, piece) in enumerate(
        zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)
    ):
        if token in special:
            continue
        spaced = f" {piece} " if piece in added else re.sub("</w>|\u2581|\u0120", " ", piece)
        for letter in spaced.lower():
            if not letter.isspace():
                text += letter
                owners.append(place)
            elif text and text[-1] != " ":
                text += " "
                owners.append(place)
    return text.rstrip(), owners


def listed(texts: str | Sequence[str], count: int) -> list[str]:
    """Return texts as a list; one text stands for all."""
    return [texts] * count if isinstance(texts, str) else list(texts)
