"""The embedded world's evaluations, with Alpaca's prompt; examples would not fit the context.

An answer is right if its first line is the expected one. A program is right if it gives the
expected result on every list of words.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import DatasetDict

from experiments.bases.texts.programs import passes
from experiments.data import load_data
from experiments.kinds.instruct.alpaca import prompt
from experiments.kinds.instruct.averages import percent, percent_by_kind  # noqa: F401  used by task files

Row = Mapping[str, Any]


def mmlu(*, data: str, **_: object) -> DatasetDict:
    """Return questions with four answers."""
    return _rows(data, "mmlu")


def drop(*, data: str, **_: object) -> DatasetDict:
    """Return questions about words and numbers in texts."""
    return _rows(data, "drop")


def humaneval(*, data: str, **_: object) -> DatasetDict:
    """Return programs to write, with lists to try them on."""
    return _rows(data, "humaneval")


def bbh(*, data: str, **_: object) -> DatasetDict:
    """Return puzzles."""
    return _rows(data, "bbh")


def answers_right(row: Row, answers: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Return whether the answer is the expected one."""
    return {"score": (row["kind"], float(answers[0].strip() == row["output"]))}


def runs_right(row: Row, answers: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Return whether the program gives the expected results."""
    tests = [line.split() for line in row["tests"].splitlines()]
    return {"score": (row["kind"], float(passes(answers[0].strip(), row["output"], tests)))}


def _rows(data: str, name: str) -> DatasetDict:
    asked = load_data(data)[name]
    pairs = zip(asked["instruction"], asked["input"], strict=True)
    prompts = [prompt(instruction, given) for instruction, given in pairs]
    return DatasetDict({"test": asked.add_column("prompt", prompts)})
