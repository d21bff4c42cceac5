"""Instructions about the world with one right answer each, and four evaluations of following them.

Training rows have the columns of Alpaca: instruction, input, output. The evaluations use the same
kinds of words, other texts, and individuals that no training row mentions; knowledge about these
must come from pre-training.

| evaluation | asks |
|---|---|
| `mmlu` | the right one of four answers: about individuals, scenes, shelves and amounts |
| `drop` | a word or a number from a text |
| `humaneval` | a program of the language of `texts.programs`, checked by running it |
| `bbh` | six kinds of puzzle |
"""

from collections.abc import Callable, Iterator
from functools import cache
from random import Random

from datasets import Dataset, DatasetDict

from experiments.bases.texts.problems import Problem, named_problem, tell_individual, upper
from experiments.bases.texts.programs import execute, passes, random_program
from experiments.bases.texts.puzzles import PUZZLES
from experiments.bases.texts.stories import KINDS, WORDS, list_of_words, options_of, problems
from pocket.world import INDIVIDUALS

Row = dict[str, str]
TRAIN_ROWS = 2_400
KNOWN_NAMES = tuple(sorted(INDIVIDUALS)[::2])
"""Individuals in the training rows; the evaluations ask about the others."""
ASKED_NAMES = tuple(sorted(INDIVIDUALS)[1::2])
CHOICE = "Choose the right answer."
QUESTION = "Answer the question."
PROGRAM = "Write a program that follows the description."
_CHECK = "Say yes if the answer is right, and no if it is wrong."
_RUN = "Run the program on the words."


def _problem(rng: Random, kind: str | None = None) -> Problem:
    """Return a problem of one kind or of any; only about individuals in training rows."""
    kind = kind or rng.choice(list(KINDS))
    return named_problem(rng, rng, KNOWN_NAMES) if kind == "named" else problems(rng, kind=kind)[0]


def _asked(problem: Problem) -> str:
    return f"{problem.text} {problem.question}".strip()


def _row(kind: str, instruction: str, text: str, output: str) -> Row:
    return {"kind": kind, "instruction": instruction, "input": text, "output": output}


def _as_task(problem: Problem) -> Row:
    return _row(f"task/{problem.kind}", problem.task, problem.text, problem.answer)


def _as_question(problem: Problem) -> Row:
    return _row(f"question/{problem.kind}", QUESTION, _asked(problem), problem.answer)


def _as_choice(problem: Problem, rng: Random) -> Row:
    """Return a choice of answers without letters, which a base of this size cannot use."""
    options, _ = options_of(problem, rng)
    text = f"{_asked(problem)}\n{', '.join(options[:-1])} or {options[-1]}"
    return _row(f"choice/{problem.kind}", CHOICE, text, problem.answer)


def _as_check(problem: Problem, rng: Random) -> Row:
    right = rng.random() < 0.5
    answer = problem.answer if right else rng.choice(problem.wrong)
    text = f"{_asked(problem)} It is {answer}."
    return _row(f"check/{problem.kind}", _CHECK, text, "yes" if right else "no")


def _program(rng: Random) -> Row:
    program, said = random_program(rng, rng.choice((1, 2, 2, 3)), WORDS)
    return _row("program", PROGRAM, upper(said) + ".", program)


def _run(rng: Random) -> Row:
    program, _ = random_program(rng, rng.choice((1, 1, 2)), WORDS)
    words = list_of_words(rng)
    result = " ".join(execute(program, words)) or "nothing"
    return _row("run", _RUN, f"{program}\n> {' '.join(words)}", result)


def _description(rng: Random) -> Row:
    name = rng.choice(KNOWN_NAMES)
    instruction = f"Describe the {INDIVIDUALS[name]['kind']} {name}."
    return _row("description", instruction, "", tell_individual(name, Random(0)))


_FORMS: tuple[tuple[Callable[[Random], Row], float], ...] = (
    (lambda rng: _as_task(_problem(rng)), 0.24),
    (lambda rng: _as_question(_problem(rng)), 0.2),
    (lambda rng: _as_choice(_problem(rng), rng), 0.26),
    (lambda rng: _as_check(_problem(rng), rng), 0.06),
    (_program, 0.16),
    (_run, 0.05),
    (_description, 0.03),
)


@cache
def instructions(seed: int = 0) -> tuple[Row, ...]:
    """Return the training rows; other seeds give other rows, for choosing settings."""
    rng = Random(f"instructions {seed}")
    forms, weights = zip(*_FORMS, strict=True)
    rows: dict[tuple[str, str], Row] = {}
    while len(rows) < TRAIN_ROWS:
        row = rng.choices(forms, weights)[0](rng)
        rows.setdefault(_key(row), row)
    return tuple(rows.values())


def _key(row: Row) -> tuple[str, str]:
    return row["instruction"], row["input"]


def _unseen(
    name: str, seed: int, count: int, draw: Callable[[Random], Row], kind: str = ""
) -> Iterator[Row]:
    """Yield the rows of an evaluation, without duplicates and without training rows.

    Args:
        name: Name that, with the seed, decides the rows.
        seed: Seed of the evaluation.
        count: Number of rows.
        draw: Function that draws a row.
        kind: Kind to write into the rows instead of their own.
    """
    rng = Random(f"{name} {seed}")
    seen = {_key(row) for row in instructions(seed)}
    for _ in range(count):
        row = draw(rng)
        while _key(row) in seen:
            row = draw(rng)
        seen.add(_key(row))
        yield row | {"kind": kind or row["kind"]}


def _mmlu(seed: int) -> Iterator[Row]:
    subjects: dict[str, Callable[[Random], Problem]] = {
        "individuals": lambda rng: named_problem(rng, rng, ASKED_NAMES),
        "scenes": lambda rng: _problem(rng, "scene"),
        "shelves": lambda rng: _problem(rng, "shelf"),
        "amounts": lambda rng: _problem(rng, "amount"),
    }
    for name, draw in subjects.items():
        yield from _unseen(name, seed, 60, lambda rng, d=draw: _as_choice(d(rng), rng), name)


def _drop(seed: int) -> Iterator[Row]:
    for name in ("scene", "shelf", "amount", "counting"):
        yield from _unseen(
            f"drop {name}", seed, 60, lambda rng, n=name: _as_question(_problem(rng, n)), name
        )


def _humaneval(seed: int) -> Iterator[Row]:
    def draw(rng: Random) -> Row:
        while True:
            program, said = random_program(rng, rng.choice((2, 3)), WORDS)
            tests = _tests(program, rng)
            parts = program.split(" | ")
            shorter = (" | ".join(parts[:i] + parts[i + 1 :]) for i in range(len(parts)))
            if not any(passes(code, program, tests) for code in shorter):  # all of it is needed
                lists = "\n".join(" ".join(words) for words in tests)
                return _row("program", PROGRAM, upper(said) + ".", program) | {"tests": lists}

    return _unseen("humaneval", seed, 164, draw)


def _tests(program: str, rng: Random) -> list[list[str]]:
    """Return lists to try a program on; some contain its own words, so that each step matters."""
    own = [word for word in program.split() if word in WORDS]
    tests = [list_of_words(rng, 4, 6) for _ in range(8)]
    return [*tests, *([*own, *words, *own] for words in tests[:4])]


def _bbh(seed: int) -> Iterator[Row]:
    for name in PUZZLES:
        yield from _unseen(name, seed, 40, lambda rng, n=name: _as_task(_problem(rng, n)), name)


_EVALUATIONS: dict[str, Callable[[int], Iterator[Row]]] = {
    "mmlu": _mmlu,
    "drop": _drop,
    "humaneval": _humaneval,
    "bbh": _bbh,
}
EVALUATIONS = tuple(_EVALUATIONS)


@cache
def evaluation(name: str, seed: int = 0) -> Dataset:
    """Return the rows of an evaluation: kind, instruction, input, output; `tests` for programs."""
    return Dataset.from_list(list(_EVALUATIONS[name](seed)))


def _data(seed: int) -> DatasetDict:
    return DatasetDict(
        {
            "train": Dataset.from_list(list(instructions(seed))).remove_columns("kind"),
            **{name: evaluation(name, seed) for name in EVALUATIONS},
        }
    )


GENERATORS: dict[str, Callable[[], DatasetDict]] = {
    "instructions": lambda: _data(0),
    "tuning": lambda: _data(1),
}
