"""Instructions about the world: reproducible, disjoint from training, with right answers.

An independent reader of the texts checks the answers, without the code that wrote them.
"""

import re
from collections.abc import Callable

import pytest

from experiments.bases.tasks.instructions import (
    ASKED_NAMES,
    EVALUATIONS,
    GENERATORS,
    KNOWN_NAMES,
    Row,
    evaluation,
    instructions,
)
from experiments.bases.texts.programs import COMMANDS, ProgramError, execute, passes
from pocket.world import INDIVIDUALS

COUNT = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
]


def _ordering(text: str, task: str) -> str:
    left = {}
    for a, side, b in re.findall(r"The (\w+) is (left|right) of the (\w+)\.", text):
        left[a if side == "left" else b] = b if side == "left" else a
    first = next(a for a in left if a not in left.values())
    row = [first, left[first], left[left[first]]]
    return row[("left." in task, "middle" in task, "right." in task).index(True)]


def _comparison(text: str, task: str) -> str:
    larger = set()
    for a, word, b in re.findall(r"The (\w+) is (larger|smaller) than the (\w+)\.", text):
        larger.add((a, b) if word == "larger" else (b, a))
    winners, losers = {a for a, _ in larger}, {b for _, b in larger}
    (answer,) = winners - losers if "largest" in task else losers - winners
    return answer


def _negation(text: str, task: str) -> str:
    named = re.match(r"The \w+ is (\w+), (\w+) or (\w+)\.", text)
    assert named
    (answer,) = set(named.groups()) - set(re.findall(r"not (\w+)", text))
    return answer


def _counting(text: str, task: str) -> str:
    things = re.findall(r"an? (\w+) (\w+)", text)
    asked = re.fullmatch(r"Count the (\w+?)(s| things) in the row\.", task)
    assert asked
    return COUNT[sum(asked[1] in thing for thing in things)]


def _tracking(text: str, task: str) -> str:
    has = {noun: color for color, noun in re.findall(r"an? (\w+) (\w+)", text)}
    for a, b in re.findall(r"The (\w+) and the (\w+) exchange", text):
        has[a], has[b] = has[b], has[a]
    return has[re.findall(r"of the (\w+) at", task)[0]]


def _truth(text: str, task: str) -> str:
    expression = re.sub(r"\b(true|false)\b", lambda m: m[0].capitalize(), text.rstrip("."))
    assert re.fullmatch(r"(True|False|not|and|or|[() ])+", expression)
    return str(eval(expression)).lower()


READERS: dict[str, Callable[[str, str], str]] = {
    "ordering": _ordering,
    "comparison": _comparison,
    "negation": _negation,
    "counting": _counting,
    "tracking": _tracking,
    "truth": _truth,
}


def _boxes(text: str) -> dict[str, tuple[str, int]]:
    """Noun -> colour and number."""
    found = re.findall(r"(\w+) (\w+) (\w+?)s?(?=,| and|\.)", text.removeprefix("The box holds "))
    return {noun: (color, COUNT.index(number)) for number, color, noun in found}


def _amount(text: str, question: str) -> str:
    box = _boxes(text)
    asked = [noun for noun in re.findall(r"\b(\w+)s\b", question) if noun in box]
    numbers = [box[noun][1] for noun in asked]
    if "color" in question:
        return box[asked[0]][0]
    if "more" in question:
        return COUNT[numbers[0] - numbers[1]]
    if "together" in question:
        return COUNT[sum(numbers)]
    if "there are the" in question or "are there the" in question:
        pick = max if "most" in question else min
        return pick(box, key=lambda noun: box[noun][1]) + "s"
    return COUNT[numbers[0]]


def _shelf(text: str, question: str) -> str:
    things = re.findall(r"an? (\w+) (\w+)", text)
    nouns = [noun for _, noun in things]
    if "color" in question:
        return next(color for color, noun in things if noun in question)
    if ordinal := re.search(r"the (first|second|third|fourth|last)\?", question):
        return (
            nouns[["first", "second", "third", "fourth", "last"].index(ordinal[1])]
            if (ordinal[1] != "last")
            else nouns[-1]
        )
    place = nouns.index(re.findall(r"the (\w+)\?", question)[0])
    return nouns[place + (1 if "after" in question else -1)]


def test_rows_are_the_same_every_time() -> None:
    first = list(GENERATORS["instructions"]()["train"])
    instructions.cache_clear()
    assert list(GENERATORS["instructions"]()["train"]) == first
    assert len(first) == len({(r["instruction"], r["input"]) for r in first}) == 2400
    assert list(GENERATORS["tuning"]()["train"]) != first


@pytest.mark.parametrize("seed", [0, 1])
def test_evaluations_share_no_row_with_training(seed: int) -> None:
    tuned = {(row["instruction"], row["input"]) for row in instructions(seed)}
    mentioned = " ".join(f"{row['instruction']} {row['input']}" for row in instructions(seed))
    assert not set(ASKED_NAMES) & set(KNOWN_NAMES)
    assert not set(re.findall(r"\w+", mentioned)) & set(ASKED_NAMES)
    for name in EVALUATIONS:
        asked = [(row["instruction"], row["input"]) for row in evaluation(name, seed)]
        assert len(set(asked)) == len(asked)
        assert not tuned & set(asked)


@pytest.mark.parametrize("kind", READERS)
def test_answers_of_puzzles_are_right(kind: str) -> None:
    rows: list[Row] = [r for r in evaluation("bbh") if r["kind"] == kind]
    rows += [r for r in instructions() if r["kind"] == f"task/{kind}"]
    assert len(rows) > 40
    for row in rows:
        assert READERS[kind](row["input"], row["instruction"]) == row["output"], row


@pytest.mark.parametrize(("kind", "reader"), [("amount", _amount), ("shelf", _shelf)])
def test_answers_of_questions_are_in_the_text(kind: str, reader: Callable[[str, str], str]) -> None:
    for row in evaluation("drop").filter(lambda row: row["kind"] == kind):
        text, question = re.findall(r"(.*?\.) (.*)", row["input"])[0]
        assert reader(text, question) == row["output"], row


def test_the_right_answer_is_among_four_from_the_world() -> None:
    """Return the answer to a question about an individual, from the world's table."""
    for row in evaluation("mmlu").filter(lambda row: row["kind"] == "individuals"):
        question, choices = row["input"].splitlines()
        options = re.split(", | or ", choices)
        assert len(set(options)) == 4
        assert row["output"] in options
        asked = re.fullmatch(r"What color (?:is|are) the (?:(\w+) of the )?\w+ (\w+)\?", question)
        assert asked
        part = {None: "color", "ears": "ear_color", "feet": "feet_color", "wheels": "wheel_color"}
        name = part.get(asked[1], f"{asked[1]}_color")
        assert row["output"] == INDIVIDUALS[asked[2]][name]


def test_programs_do_what_their_commands_say() -> None:
    words = ["red", "car", "blue", "car"]
    expected = {
        "reverse": "car blue car red",
        "sort": "blue car car red",
        "swap": "car car blue red",
        "double": "red red car car blue blue car car",
        "keep 3": "red car blue",
        "drop 3": "car",
        "last 2": "blue car",
        "without car": "red blue",
        "append toy": "red car blue car toy",
        "prepend toy": "toy red car blue car",
    }
    assert {code.split()[0] for code in expected} == set(COMMANDS)
    for code, result in expected.items():
        assert execute(code, words) == result.split(), code
    assert execute("reverse | keep 1 | double", words) == ["car", "car"]
    assert execute("keep 2 | without red", []) == []


def test_a_program_is_judged_by_its_results() -> None:
    tests = [row.split() for row in ("red car blue", "blue red red car", "car")]
    assert passes("reverse | keep 1", "last 1", tests)
    assert not passes("keep 1", "last 1", tests)
    assert not passes("without car", "without blue", tests)
    for wrong in ("", "turn", "keep", "keep 9", "keep two", "reverse 2", "reverse |", "keep 1 2"):
        assert not passes(wrong, "reverse", tests), wrong
        with pytest.raises(ProgramError):
            execute(wrong, tests[0])
    assert len(execute(" | ".join(["double"] * 200), ["red"])) == 64


def test_every_command_of_a_requested_program_is_needed() -> None:
    for row in evaluation("humaneval"):
        tests = [line.split() for line in row["tests"].splitlines()]
        assert passes(row["output"], row["output"], tests)
        assert not passes(row["output"].rpartition(" | ")[0], row["output"], tests)
        assert not passes(row["output"].partition(" | ")[2], row["output"], tests)
