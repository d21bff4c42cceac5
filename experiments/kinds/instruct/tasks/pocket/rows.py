"""The embedded world's evaluations: Alpaca's prompt without examples, as no more fits the context.

An answer is right when its first line is the wanted one; a program when it does, on every list of
words, what the wanted one does.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict

from experiments.bases.texts.programs import passes
from experiments.data import load_data
from experiments.kinds.instruct.alpaca import prompt
from experiments.kinds.instruct.averages import percent, percent_by_kind  # noqa: F401  the task files name them

Row = Mapping[str, Any]


def mmlu(*, data: str, **_: object) -> DatasetDict:
    """Letters of answers."""
    return _rows(data, "mmlu")


def drop(*, data: str, **_: object) -> DatasetDict:
    """Words and numbers from texts."""
    return _rows(data, "drop")


def humaneval(*, data: str, **_: object) -> DatasetDict:
    """Programs, with lists to try them on."""
    return _rows(data, "humaneval")


def bbh(*, data: str, **_: object) -> DatasetDict:
    """Puzzles."""
    return _rows(data, "bbh")


def answers_right(row: Row, answers: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Whether the answer is the wanted one."""
    return {"score": (row["kind"], float(answers[0].strip() == row["output"]))}


def runs_right(row: Row, answers: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Whether the program does what was asked for."""
    tests = [line.split() for line in row["tests"].splitlines()]
    return {"score": (row["kind"], float(passes(answers[0].strip(), row["output"], tests)))}


def _rows(data: str, name: str) -> DatasetDict:
    asked = load_data(data)[name]
    pairs = zip(asked["instruction"], asked["input"], strict=True)
    prompts = [prompt(instruction, given) for instruction, given in pairs]
    return DatasetDict({"test": asked.add_column("prompt", prompts)})
