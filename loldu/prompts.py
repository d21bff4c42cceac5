"""Find the rare token and the class of a concept in its prompts, and prompts that are too long."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

logger = logging.getLogger(__name__)

_SAYS_LITTLE = re.compile(
    "an?|the|my|this|that|of|in|on|at|with|and|by|from|photo(graph)?|picture|image|close-up|"
    "portrait|painting|drawing|rendering|illustration"
)
"""A word of a prompt that names neither a concept nor a class."""


def token_and_class(instance_prompt: str, class_prompts: Sequence[str]) -> tuple[str, str] | None:
    """Return the rare token and the class: "a photo of a sks toy", "a photo of a toy": sks, toy.

    The token is the one run of words that a class prompt lacks; the class is what follows it. If
    the class prompts give several answers, the one with the shortest token counts.

    Returns:
        None if no class prompt separates the token from the class.
    """
    words = instance_prompt.split()
    found: list[tuple[str, str]] = []
    for class_prompt in class_prompts:
        new = [index for index, word in enumerate(words) if word not in class_prompt.split()]
        if new and new[-1] - new[0] == len(new) - 1 and words[new[-1] + 1 :]:
            found.append((" ".join(words[new[0] : new[-1] + 1]), " ".join(words[new[-1] + 1 :])))
    return min(found, key=lambda pair: len(pair[0]), default=None)


def likely_token_and_class(
    prompt: str, class_prompts: Sequence[str], token: str | None = None
) -> tuple[str | None, str | None]:
    """Return the rare token of a prompt and its class, guessed if nothing says which they are.

    The guessed token is the first word that says something and is in no class prompt. Its class is
    the first word after it that a class prompt has, or else the next word.

    Args:
        prompt: The instance prompt.
        class_prompts: Prompts of the class, if there are any.
        token: The token, if it is given.
    """
    if token is not None:
        return token, class_after(*(" ".join(_words(text)) for text in (prompt, token))) or None
    if found := token_and_class(prompt, class_prompts):
        return found
    ordinary = {word for class_prompt in class_prompts for word in _words(class_prompt)}
    telling = _telling(prompt)
    places = [place for place, word in enumerate(telling) if word not in ordinary]
    if not places:
        return None, None
    after = telling[places[0] + 1 :]
    known = [word for word in after if word in ordinary]
    return telling[places[0]], next(iter(known or after), None)


def common_words(captions: Sequence[str]) -> str:
    """Return the words of the first caption that most captions contain."""
    count = Counter(word for caption in captions for word in set(_words(caption)))
    return " ".join(word for word in _words(captions[0]) if count[word] > len(captions) / 2)


def lacks_word(caption: str, name: str, *, every: bool) -> bool:
    """Tell whether a caption lacks a name: `every` asks for all of its words, or else for one.

    Words that say little, such as "a photo of", are not looked for.
    """
    words = _telling(name)
    there = [word in _words(caption) for word in words]
    return bool(words) and not (all(there) if every else any(there))


def says_more(caption: str, *names: str) -> bool:
    """Tell whether a caption has words beside these names and words that say little."""
    known = {word for name in names for word in _words(name)}
    return any(word not in known for word in _telling(caption))


def tell_of_cut(tokenizer: Any, prompts: Sequence[str], reader: str) -> bool:  # noqa: ANN401
    """Log a line, once, for every prompt whose end a tokenizer of transformers cuts off.

    Args:
        tokenizer: The tokenizer.
        prompts: Prompts, which it cuts at its `model_max_length`.
        reader: The model behind it, for the message.

    Returns:
        Whether any prompt is too long.
    """
    most = tokenizer.model_max_length - tokenizer.num_special_tokens_to_add()
    found = False
    for prompt in prompts:
        tokens = tokenizer(prompt, add_special_tokens=False, verbose=False).input_ids
        if len(tokens) > most:
            log_cut(prompt, tokens, most, tokenizer.decode, reader)
            found = True
    return found


def log_cut(
    prompt: str, tokens: Sequence[int], most: int, decode: Callable[[Any], str], reader: str
) -> None:
    """Log, once, that a prompt has more tokens than a model reads.

    Args:
        prompt: The prompt.
        tokens: Its tokens, without those that begin and end it.
        most: How many of them the model reads.
        decode: Returns the text of tokens.
        reader: The model, for the message.
    """
    _warn_once(
        f'"{_beginning(prompt)}" has {len(tokens)} tokens, and {reader} reads {most} of a prompt: '
        f'"{_beginning(decode(tokens[most:]).strip())}" is left out; shorten the prompt.'
    )


@lru_cache(maxsize=1024)
def _warn_once(line: str) -> None:
    logger.warning("%s", line)


def _beginning(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:60]}..."


def class_after(prompt: str, token: str) -> str | None:
    """Return what follows the token in a prompt, or None if the token is not in it."""
    words, rare = prompt.split(), token.split()
    for start in range(len(words)):
        if words[start : start + len(rare)] == rare:
            return " ".join(words[start + len(rare) :])
    return None


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


def _telling(text: str) -> list[str]:
    return [word for word in _words(text) if not _SAYS_LITTLE.fullmatch(word)]


def _words(text: str) -> list[str]:
    return re.findall(r"[^\W_]+(?:[-'’_][^\W_]+)*", text.lower())
