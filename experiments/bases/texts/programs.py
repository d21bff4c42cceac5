"""A tiny exact language that transforms lists of words: ``reverse | keep 2``.

A program is a chain of commands; each takes a list of words and gives one. Nothing in it loops,
grows without bound or touches anything outside the list, so any program may be run.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Words = list[str]
MAX_WORDS = 64
NUMBERS = ("1", "2", "3")
COUNTED = {"1": "one word", "2": "two words", "3": "three words"}


class ProgramError(ValueError):
    """A program that cannot be run."""


@dataclass(frozen=True)
class Command:
    """A command of the language.

    Attributes:
        act: Function of the words and the argument, "" without one.
        said: English phrases, with a place for the argument.
        argument: Kind of argument: "", "number" or "word".
    """

    act: Callable[[Words, str], Words]
    said: tuple[str, ...]
    argument: str = ""


def _swap(words: Words) -> Words:
    return words if len(words) < 2 else [words[-1], *words[1:-1], words[0]]


COMMANDS: dict[str, Command] = {
    "reverse": Command(
        lambda words, _: words[::-1], ("turn the list around", "put the words in reverse order")
    ),
    "sort": Command(
        lambda words, _: sorted(words), ("put the words in order of the alphabet", "sort the words")
    ),
    "swap": Command(
        lambda words, _: _swap(words),
        ("exchange the first and the last word", "swap the two ends"),
    ),
    "double": Command(
        lambda words, _: [w for word in words for w in (word, word)],
        ("write every word twice", "double every word"),
    ),
    "keep": Command(
        lambda words, n: words[: int(n)],
        ("keep only the first {}", "cut the list after {}"),
        "number",
    ),
    "drop": Command(
        lambda words, n: words[int(n) :],
        ("leave out the first {}", "take {} away from the start"),
        "number",
    ),
    "last": Command(
        lambda words, n: words[-int(n) :],
        ("keep only the last {}", "go to the end and take {}"),
        "number",
    ),
    "without": Command(
        lambda words, word: [w for w in words if w != word],
        ("leave out the word {}", "remove {}"),
        "word",
    ),
    "append": Command(
        lambda words, word: [*words, word],
        ("write {} at the end", "add {} after the last word"),
        "word",
    ),
    "prepend": Command(
        lambda words, word: [word, *words],
        ("write {} at the start", "put {} before the first word"),
        "word",
    ),
}


def execute(program: str, words: Sequence[str]) -> Words:
    """Run a program on a list of words.

    Raises:
        ProgramError: If a command is unknown, lacks its argument or has one too many.
    """
    result = list(words)
    for part in program.split("|"):
        name, *arguments = part.split() or [""]
        command = COMMANDS.get(name)
        if command is None:
            raise ProgramError(f"There is no command {name!r}: {', '.join(COMMANDS)}.")
        if len(arguments) != bool(command.argument):
            raise ProgramError(f"{name} takes {1 if command.argument else 'no'} argument.")
        if command.argument == "number" and arguments[0] not in NUMBERS:
            raise ProgramError(f"{name} takes a number of {', '.join(NUMBERS)}.")
        result = command.act(result, "".join(arguments))[:MAX_WORDS]
    return result


def passes(program: str, reference: str, tests: Sequence[Sequence[str]]) -> bool:
    """Return whether a program gives the reference's result on every list."""
    try:
        return all(execute(program, words) == execute(reference, words) for words in tests)
    except ProgramError:
        return False


def random_command(rng: random.Random, words: Sequence[str]) -> tuple[str, str]:
    """Return a random command with its argument, and its meaning in English."""
    name = rng.choice(list(COMMANDS))
    command = COMMANDS[name]
    said = rng.choice(command.said)
    if command.argument == "number":
        number = rng.choice(NUMBERS)
        return f"{name} {number}", said.format(COUNTED[number])
    if command.argument == "word":
        word = rng.choice(list(words))
        return f"{name} {word}", said.format(word)
    return name, said


def random_program(rng: random.Random, length: int, words: Sequence[str]) -> tuple[str, str]:
    """Return a random program, and its meaning: "sort the words, then double every word"."""
    parts: list[tuple[str, str]] = []
    while len(parts) < length:
        part = random_command(rng, words)
        if not parts or part[0].split()[0] != parts[-1][0].split()[0]:
            parts.append(part)
    return " | ".join(code for code, _ in parts), ", then ".join(said for _, said in parts)
