"""INSTRUCTEVAL's protocol: the questions, their examples, and the check of answers.

Every row holds its whole prompt, because the examples before a question depend on its subject. An
answer is right if it begins with the expected one. INSTRUCTEVAL drops examples from prompts of more
than 2,048 tokens; this module keeps all, because LLaMA 2 reads 4,096.

Source: Chia et al., "INSTRUCTEVAL: Towards Holistic Evaluation of Instruction-Tuned Large Language
Models", 2023, and its released code (github.com/declare-lab/instruct-eval).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random
from typing import Any

from datasets import Dataset, DatasetDict

from experiments import data as manifest
from experiments.kinds.instruct.averages import percent, percent_by_kind  # noqa: F401  used by task files
from experiments.kinds.instruct.untrusted import passes

MMLU_SHOTS, DROP_SHOTS, BBH_SHOTS = 5, 3, 3
_LETTERS = "ABCD"
_CODE = (
    "Please complete the following Python code without providing any additional tasks such as "
    "testing or explanations\n"
)
Row = Mapping[str, Any]


def mmlu(**_: object) -> DatasetDict:
    """Return the questions of all subjects, each after five examples of its subject."""
    splits = _load("mmlu")
    examples: dict[str, list[Row]] = defaultdict(list)
    for row in splits["dev"]:
        examples[row["subject"]].append(row)

    def asked(row: Row) -> str:
        lines = [
            f"{letter}. {choice}" for letter, choice in zip(_LETTERS, row["choices"], strict=True)
        ]
        return "\n".join([row["question"], *lines])

    def rows() -> Iterable[Row]:
        for row in splits["test"]:
            subject = row["subject"]
            shots = _shots(examples[subject][:MMLU_SHOTS], asked, lambda r: _LETTERS[r["answer"]])
            # INSTRUCTEVAL has two spaces before the subject, too.
            opening = (
                "The following are multiple choice questions (with answers) about  "
                f"{subject.replace('_', ' ')}.\n\n"
            )
            yield {
                "kind": subject,
                "prompt": f"{opening}{shots}{asked(row)}\nAnswer:",
                "target": _LETTERS[row["answer"]],
            }

    return _test(rows())


def drop(**_: object) -> DatasetDict:
    """Return questions with one answer, after three examples on other texts."""
    singles = [r for r in _load("drop")["validation"] if len(set(_spans(r))) == 1]
    examples = Random(0).sample(singles, k=DROP_SHOTS)
    known = {row["passage"] for row in examples}

    def asked(row: Row) -> str:
        return f"{row['passage'].strip()} {row['question'].strip()}"

    shots = _shots(examples, asked, lambda row: _spans(row)[0])
    return _test(
        {"kind": "drop", "prompt": f"{shots}{asked(row)}\nAnswer:", "target": _spans(row)[0]}
        for row in singles
        if row["passage"] not in known
    )


def bbh(**_: object) -> DatasetDict:
    """Return questions of 27 kinds, each after three examples without written reasoning."""

    def rows() -> Iterable[Row]:
        for kind, split in _load("bbh").items():
            shots = _shots(split[:BBH_SHOTS], lambda r: r["input"], lambda r: r["target"])
            for row in split[BBH_SHOTS:]:
                prompt = f"{shots}{row['input']}\nAnswer:"
                yield {"kind": kind, "prompt": prompt, "target": row["target"]}

    return _test(rows())


def humaneval(**_: object) -> DatasetDict:
    """Return functions to complete, with their tests."""
    return _test(
        {
            "kind": "humaneval",
            "prompt": _CODE + row["prompt"],
            "target": row["canonical_solution"],
            "head": row["prompt"],
            "tests": f"{row['test']}\ncheck({row['entry_point']})",
        }
        for row in _load("humaneval")["test"]
    )


def begins_right(row: Row, answers: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Return whether the answer begins with the expected one."""
    return {"score": (row["kind"], float(answers[0].strip().startswith(row["target"])))}


def runs_right(row: Row, answers: Sequence[str]) -> dict[str, tuple[str, float]]:
    """Return whether the completed function passes its tests, in a process with limits."""
    program = f"{row['head']}{completion(answers[0])}\n{row['tests']}"
    return {"score": (row["kind"], float(passes(program)))}


def completion(text: str) -> str:
    """Return the first function of a text, with indents rounded up to even numbers."""
    lines = []
    for line in text.split("\n"):
        odd = (len(line) - len(line.lstrip(" "))) % 2
        lines.append(" " * odd + line)
    return "\n".join(lines).lstrip("\n").split("\n\n")[0]


def _load(name: str) -> dict[str, list[Row]]:
    splits: Any = manifest.load_data(name)
    return {str(split): [dict(row) for row in rows] for split, rows in splits.items()}


def _shots(rows: Iterable[Row], asked: Callable[[Row], str], answer: Callable[[Row], str]) -> str:
    return "".join(f"{asked(row)}\nAnswer: {answer(row)}\n\n" for row in rows)


def _spans(row: Row) -> list[str]:
    return [span.strip() for span in row["answers_spans"]["spans"]]


def _test(rows: Iterable[Row]) -> DatasetDict:
    return DatasetDict({"test": Dataset.from_list([dict(row) for row in rows])})
