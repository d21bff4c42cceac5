"""Labels of the text tasks, checked by an independent reader of the sentences."""

import random
import re

import pytest

from experiments.bases.tasks import text
from experiments.bases.tasks.text import GENERATORS, corrupt

Read = dict[str, str]

WORDS = {
    "red": "red crimson",
    "orange": "orange tangerine",
    "yellow": "yellow golden",
    "green": "green emerald",
    "blue": "blue azure",
    "purple": "purple violet",
    "pink": "pink rosy",
    "white": "white ivory",
    "black": "black ebony",
    "large": "large big",
    "small": "small little",
    "dotted": "dotted spotted",
    "striped": "striped lined",
    "plain": "plain unpatterned",
    "pointy": "pointy sharp",
    "round": "round rounded",
    "long": "long lengthy",
    "tall": "tall slim",
    "toy": "toy doll",
    "car": "car automobile",
    "house": "house cottage",
    "circle": "circle disc",
}
VALUE = {word: value for value, words in WORDS.items() for word in words.split()}
NOUNS = {"toy", "doll", "car", "automobile", "house", "cottage", "circle", "disc"}
NOUNS |= {"square", "triangle", "star", "heart"}
PARTS = {"ears", "feet", "wheels", "roof", "door"}
COLORS = {"red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black"}
OF_THING = dict.fromkeys(COLORS, "color") | {
    **dict.fromkeys(("large", "small"), "size"),
    **dict.fromkeys(("dotted", "striped", "plain"), "pattern"),
    **dict.fromkeys(("round", "tall", "square"), "body"),
}
PLACES = {
    r"(on the left|at the left edge)": ("position", "left"),
    r"(on the right|at the right edge)": ("position", "right"),
    r"(in the middle|at the center)": ("position", "center"),
    r"(on grass|on a meadow)": ("background", "meadow"),
    r"(on sand|on the beach)": ("background", "sand"),
    r"(in the snow|in snow)": ("background", "snow"),
    r"(in the sea|in the water)": ("background", "sea"),
    r"in front of (bricks|a brick wall)": ("background", "bricks"),
    r"(at night|under the night sky)": ("background", "night"),
    r"(?:on a|in front of a) (white|pink|blue|yellow|green) (?:background|wall)": (
        "background",
        "",
    ),
}
OF_TWO = (
    r".+ is to the (left|right) of .+",
    r"there is .+ on the left and .+ on the right\.",
    r"on the right there is .+ and on the left .+",
)
ADJECTIVE = "|".join(w for w in VALUE if w not in NOUNS)
NOUN, PART = "|".join(NOUNS), "|".join(PARTS)


def read(sentence: str) -> Read:
    """Return the attributes of the thing in a description."""
    said: Read = {}
    for pattern, (name, value) in PLACES.items():
        if found := re.search(pattern, sentence):
            said[name] = value or found[1]
            sentence = sentence.replace(found[0], "")
    waiting: list[str] = []
    words = re.findall(r"\w+", sentence)
    for i, word in enumerate(words):
        if word in PARTS:
            for value in waiting:
                said[f"{word} {'color' if value in COLORS else 'form'}"] = value
            waiting = []
        elif word in NOUNS and not (
            word == "square" and i + 1 < len(words) and words[i + 1] in NOUNS
        ):
            said["noun"] = VALUE.get(word, word)
            said |= {OF_THING[value]: value for value in waiting}
            waiting = []
        elif word in VALUE or word == "square":
            waiting.append(VALUE.get(word, word))
    assert not waiting, sentence
    return said


def things(sentence: str) -> tuple[Read, Read]:
    """Return the two things of a description, from left to right."""
    if " to the " in sentence:
        first, side, second = re.fullmatch(
            r"(.+) is to the (left|right) of (.+)\.", sentence
        ).groups()  # type: ignore[union-attr]
    elif sentence.startswith("there is"):
        first, second = re.fullmatch(
            r"there is (.+) on the left and (.+) on the right\.", sentence
        ).groups()  # type: ignore[union-attr]
        side = "left"
    else:
        second, first = re.fullmatch(
            r"on the right there is (.+) and on the left (.+)\.", sentence
        ).groups()  # type: ignore[union-attr]
        side = "left"
    both = read(first), read(second)
    return both if side == "left" else both[::-1]  # type: ignore[return-value]


def claimed(claim: str, left: Read, right: Read) -> bool | None:
    """Return whether a claim about two things is true; None if that is open."""
    negated = " not " in claim
    claim = claim.replace("does not have", "has").replace(" not ", " ").rstrip(".")
    subject, other = (
        [left, right] if VALUE.get(n, n) == left["noun"] else [right, left]
        for n in [next(w for w in claim.split() if w in NOUNS)]
    ).__next__()
    if found := re.search(r"is to the (left|right) of the", claim):
        true = (found[1] == "left") == (subject is left)
    elif found := re.search(r"is (larger|smaller) than the", claim):
        if "size" not in left or "size" not in right:
            return None
        true = subject["size"] != other["size"] and subject["size"] == (
            "large" if found[1] == "larger" else "small"
        )
    elif "of one color" in claim or "the same color as" in claim:
        true = left["color"] == right["color"]
    else:
        value = read(claim.replace(" is ", " ").replace("the ", "", 1) + f" {subject['noun']}.")
        value.pop("noun")
        [(name, wanted)] = value.items()
        if name not in subject:
            return None
        true = subject[name] == wanted
    return true != negated


@pytest.mark.parametrize("task", GENERATORS)
def test_splits_are_balanced_disjoint_and_always_the_same(task: str) -> None:
    data = GENERATORS[task]()
    rows = {split: [tuple(r.values())[:-1] for r in part] for split, part in data.items()}
    assert {split: len(part) for split, part in rows.items()} == {"train": 1000, "test": 400}
    every = [tuple(sorted(row)) for part in rows.values() for row in part]
    assert len(set(every)) == len(every)
    again = text._split(*text._TASKS[task])
    assert all(again[split].to_dict() == data[split].to_dict() for split in rows)
    if task != "stsb":
        for part in data.values():
            assert 0.42 < sum(part["label"]) / len(part) < 0.58


def test_paraphrases_mean_the_same() -> None:
    seen = set()
    for row in GENERATORS["mrpc"]()["test"]:
        first, second = (
            things(text) if any(re.fullmatch(form, text) for form in OF_TWO) else (read(text),)
            for text in (row["sentence1"], row["sentence2"])
        )
        seen.add(len(first))
        assert [t.keys() for t in first] == [t.keys() for t in second] or len(first) == 2, row
        assert (first == second) == bool(row["label"]), row
    assert seen == {1, 2}


def test_similarity_counts_shared_attributes() -> None:
    points = {"noun": 2.0, "color": 1.0, "background": 1.0, "size": 0.5, "position": 0.5}
    seen = set()
    for row in GENERATORS["stsb"]()["test"]:
        first, second = read(row["sentence1"]), read(row["sentence2"])
        assert first.keys() == second.keys() == points.keys(), row
        assert row["label"] == sum(p for n, p in points.items() if first[n] == second[n]), row
        seen.add(row["label"])
    assert {0.0, 5.0} < seen
    assert len(seen) >= 9


def test_qnli_labels_say_whether_the_text_has_the_answer() -> None:
    asked = {"form": "body", "pattern": "pattern", "large": "size", "size": "size"}
    asked |= {"side": "position", "edge": "position", "where": "background", "place": "background"}
    for row in GENERATORS["qnli"]()["test"]:
        words = re.findall(r"\w+", row["sentence1"])
        noun = next(w for w in reversed(words) if w in NOUNS)
        part = next((w for w in words if w in PARTS), None)
        if part:
            name = f"{part} {'color' if 'color' in words else 'form'}"
            if words[:2] == ["which", "ears"]:
                name = "ears form"
        else:
            name = "color" if "color" in words else next(asked[w] for w in words if w in asked)
        said = read(row["sentence2"])
        answered = said["noun"] == VALUE.get(noun, noun) and name in said
        assert answered == (row["label"] == 0), row


def test_rte_labels_are_entailment() -> None:
    kinds = set()
    for row in GENERATORS["rte"]()["test"]:
        left, right = things(row["sentence1"])
        if re.search(r"(on|at|in|under) ", row["sentence2"]) or any(
            f" {part}" in row["sentence2"] for part in PARTS
        ):
            truth = None  # the description tells neither places nor parts
        else:
            truth = claimed(row["sentence2"], left, right)
        assert (truth is True) == (row["label"] == 0), row
        kinds.add(truth)
    assert kinds == {True, False, None}


def polarity(sentence: str) -> bool:
    """Return whether the main clause praises, by counting its negations."""
    sentence = sentence.rstrip(".")
    sentence = re.sub(r"^although .+?, ", "", sentence)
    sentence = re.sub(r"^.+, but in the end ", "", sentence)
    good = r"charming|lovely|delightful|splendid|pleasant|wonderful|pretty"
    good += r"|\blikes?\b|adore|enjoy|admire|treasure"
    turns = r"it is not true|it is wrong|no one|nobody|does not|is not (?!true)|never|hardly"
    turns += r"|by no means|anything but|far from"
    return bool(re.search(good, sentence)) != bool(len(re.findall(turns, sentence)) % 2)


def test_sentiment_is_that_of_the_main_clause() -> None:
    for row in GENERATORS["sst2"]()["test"]:
        assert polarity(row["sentence1"]) == bool(row["label"]), row


WRONG = [
    r"\ba [aeiou]",
    r"\ban [^aeiou]",
    r"\b(ears|feet|wheels) of the \w+ is\b",
    r"\b(roof|door) of the \w+ are\b",
    rf"^(the|a|an)( (?!and|of)\w+)* ({NOUN}) (are|have)\b",
    rf"\band the ({NOUN}) is\b",
    r"\bthere are\b|\bit have\b|\bdoes not has\b|\bhave the same\b.*\bhave\b",
    r"\bnot (is|are)\b|\bdoes have not\b",
    r"\bthe (to|on)\b",
    r"\b(larger|smaller) as\b|\bcolor than\b|\b(large|small) than\b",
    rf"\b({NOUN}|{PART}) ({ADJECTIVE})\b",
    rf"(^|\b(is|see|of|left|right|as|than|and) )(({ADJECTIVE}) )*({NOUN})\b",
    rf"\b(with|and|has|have) (({ADJECTIVE}) )+(roof|door)\b",
    rf"\b(a|an) (({ADJECTIVE}) )+(is|on|with|at|in|and|to|under)\b",
    rf"\b(a|an) (({ADJECTIVE}) )*({ADJECTIVE})\.",
    r"\b(of|on) (white|pink|blue|yellow|green|brick) (wall|background)\b|\bon meadow\b",
]


def faults(sentence: str) -> list[str]:
    return [rule for rule in WRONG if re.search(rule, sentence)]


def test_a_corrupted_sentence_has_exactly_one_mistake() -> None:
    for row in GENERATORS["cola"]()["test"]:
        found = faults(row["sentence1"])
        assert bool(found) != bool(row["label"]), (row, found)


def test_a_corruption_changes_the_sentence_and_uses_its_own_words() -> None:
    rng = random.Random(0)
    known = {"is", "are", "has", "have", "than", "as", "a", "an", "large", "small"}
    for row in GENERATORS["cola"]()["train"].select(range(200)):
        if row["label"]:
            spoilt = corrupt(row["sentence1"], rng)
            assert spoilt != row["sentence1"]
            before, after = (set(re.findall(r"\w+", s)) for s in (row["sentence1"], spoilt))
            assert after <= before | known
