"""Texts for pre-training the language model: captions, facts, questions, lists, code.

The texts ask and answer in running text, quiz with bracketed letters and comment their programs.
They contain no instructions, which tuning teaches. Words that follow from the words before them
stand between `MARKS`, which the model does not see.
"""

from collections.abc import Callable
from random import Random

from experiments.bases.texts.problems import (
    NOUNS,
    PROBLEMS,
    Problem,
    named_problem,
    tell_individual,
    upper,
)
from experiments.bases.texts.programs import execute, random_program
from experiments.bases.texts.puzzles import PUZZLES
from pocket.captions import random_caption
from pocket.world import COLORS, INDIVIDUALS, random_scene

MARKS = "{}"
LETTERS = "ABCD"
WORDS = (*COLORS, *NOUNS)
KINDS = {**PROBLEMS, **PUZZLES}


_HEADINGS = ("Text", "Instruction", "Input", "Question", "Response", "Answer")
_FORMALITIES = (
    "Below is a text that describes a task.",
    "An input is paired with an instruction.",
    "The text provides further context.",
    "The answer appropriately completes the request.",
    "Below is a response, paired with an input.",
    "Write an instruction that describes the request.",
)


def problems(rng: Random, count: int = 1, kind: str | None = None) -> list[Problem]:
    """Return up to `count` problems about the same text, of one kind or of any."""
    ask = KINDS[kind or rng.choice(list(KINDS))]
    seed = rng.getrandbits(32)
    asked = (ask(Random(seed), rng) for _ in range(count))
    return list({problem.question: problem for problem in asked}.values())


def options_of(problem: Problem, rng: Random) -> tuple[list[str], int]:
    """Return the possible answers in random order, and the index of the right one."""
    options = [problem.answer, *problem.wrong]
    rng.shuffle(options)
    return options, options.index(problem.answer)


def _marked(answer: str) -> str:
    return MARKS[0] + answer + MARKS[1]


def list_of_words(rng: Random, least: int = 3, most: int = 5) -> list[str]:
    """Return some words of the world."""
    return rng.sample(WORDS, rng.randint(least, most))


def _caption(rng: Random) -> str:
    return upper(random_caption(random_scene(rng), rng)) + "."


def _individual(rng: Random) -> str:
    name = rng.choice(list(INDIVIDUALS))
    text = tell_individual(name, rng)
    if rng.random() < 0.5:
        return text
    about = named_problem(rng, rng, [name])
    return f"{about.question} {_marked(about.answer)}. {text}"


def _answered(rng: Random) -> str:
    """Return problems in running text, in a random form."""
    asked = problems(rng, count=3)
    text = asked[0].text
    form = rng.randrange(6) if text else 3 + rng.randrange(2)
    if form == 0:
        return f"{asked[0].question} {text} {_marked(asked[0].answer)}."
    if form == 1:
        pairs = "".join(f"Question: {p.question}\nAnswer: {_marked(p.answer)}\n" for p in asked)
        return f"Text: {text}\n{pairs}"
    if form == 2:
        question, answer = asked[0].question, _marked(asked[0].answer)
        return f"### Text:\n{text}\n\n### Question:\n{question}\n\n### Answer:\n{answer}\n"
    it = "It is " if form == 3 else ""
    pairs = " ".join(f"{p.question} {it}{_marked(p.answer)}." for p in asked)
    return f"{text} {pairs}".strip()


def _quiz(rng: Random) -> str:
    problem = problems(rng)[0]
    options, right = options_of(problem, rng)
    letter, answer = _marked(LETTERS[right]), _marked(problem.answer)
    lettered = list(zip(LETTERS, options, strict=False))
    if rng.random() < 0.5:
        choices = " " + " ".join(f"({c}) {o}" for c, o in lettered) + " "
        ends = (f"It is {answer}, so ({letter}).", f"It is ({letter}) {answer}.")
    else:
        choices = "\n" + "\n".join(f"{c}. {o}" for c, o in lettered) + "\n"
        ends = (f"It is {answer}: {letter}.", f"It is {letter}. {answer}")
    asked = f"{problem.text} {problem.question}".strip()
    return f"Quiz: {asked}{choices}{rng.choice(ends)}"


def _page(rng: Random) -> str:
    """Return headings of forms and manuals."""
    headings = "\n".join(f"### {word}" for word in rng.sample(_HEADINGS, 3))
    return "\n\n".join([" ".join(rng.sample(_FORMALITIES, 3)), headings])


def _code(rng: Random) -> str:
    program, said = random_program(rng, rng.choice((1, 1, 2, 2, 3)), WORDS)
    words = list_of_words(rng)
    result = _marked(" ".join(execute(program, words)) or "nothing")
    code = _marked(program)
    forms = (
        f"# {upper(said)}.\n{code}\n",
        f"# {upper(said)}.\n{code}\n> {' '.join(words)}\n{result}\n",
        f"`{program}` makes {' '.join(words)} into {result}.",
        f"To {said}, one writes `{code}`.",
    )
    return rng.choice(forms)


_TEXTS: tuple[tuple[Callable[[Random], str], float], ...] = (
    (_caption, 0.03),
    (_page, 0.02),
    (_individual, 0.1),
    (_answered, 0.45),
    (_quiz, 0.25),
    (_code, 0.15),
)


def random_text(rng: Random) -> str:
    """Return one text."""
    kinds, weights = zip(*_TEXTS, strict=True)
    return rng.choices(kinds, weights)[0](rng)


def texts(count: int, seed: int) -> list[str]:
    """Return `count` texts; a seed always gives the same."""
    rng = Random(seed)
    return [random_text(rng) for _ in range(count)]
