"""The embedded world's evaluations, with Alpaca's prompt; examples would not fit the context.

An answer is right if its first line is the expected one. A program is right if it gives the
expected result on every list of words.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from datasets import DatasetDict

from experiments.bases.texts.programs import passes
from experiments.data import load_data
from experiments.kinds.instruct.alpaca import prompt
from experiments.kinds.instruct.averages import percent, percent_by_kind  # noqa: F401  used by task files
from experiments.kinds.instruct.harness import BENCHMARKS

Row = Mapping[str, Any]


def _rows(name: str, *, data: str, **_: object) -> DatasetDict:
    """Return the rows of an evaluation with their prompts."""
    asked = load_data(data)[name]
    pairs = zip(asked["instruction"], asked["input"], strict=True)
    prompts = [prompt(instruction, given) for instruction, given in pairs]
    return DatasetDict({"test": asked.add_column("prompt", prompts)})


mmlu, drop, humaneval, bbh = (partial(_rows, name) for name in BENCHMARKS)
"""Questions with four answers, words and numbers from texts, programs to write, and puzzles."""


def answers_right(row: Row, answers: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Return whether the answer is the expected one."""
    return {"score": (row["kind"], float(answers[0].strip() == row["output"]))}


def runs_right(row: Row, answers: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Return whether the program gives the expected results."""
    tests = [line.split() for line in row["tests"].splitlines()]
    return {"score": (row["kind"], float(passes(answers[0].strip(), row["output"], tests)))}
