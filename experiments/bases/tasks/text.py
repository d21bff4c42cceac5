"""Six tasks on sentences of the pocket world, each after the GLUE task of the same name.

Labels follow from the scenes that the sentences were made from; there is no noise. Label numbers
are GLUE's: 1 is positive, a paraphrase, acceptable; 0 is entailed. Training and test rows share no
row and no pair of sentences.
"""

import functools
import random
from collections.abc import Callable, Mapping
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from experiments.bases.texts.descriptions import (
    SYNONYMS,
    ask,
    describable,
    describe,
    describe_pair,
    mentioned,
    noun_of,
    phrase,
    say,
)
from experiments.bases.texts.opinions import clause
from experiments.bases.texts.reading import (
    change_one,
    claim_about,
    other_value,
    random_claim,
    random_pair,
    random_thing,
)
from pocket.world import Scene, random_scene

Row = dict[str, Any]

_NOUNS = {word for noun in ("toy", "car", "house", "circle") for word in SYNONYMS[noun]}
_NOUNS |= {"square", "triangle", "star", "heart"}
_PARTS = {"ears", "feet", "wheels", "roof", "door"}
_ADJECTIVES = {word for words in SYNONYMS.values() for word in words} - _NOUNS
_TRAIN_ROWS, _TEST_ROWS = 1000, 400
# What two captions have in common counts so much toward the five points of their similarity.
SIMILARITY = {"kind": 2.0, "color": 1.0, "background": 1.0, "size": 0.5, "position": 0.5}


def _sentiment(rng: random.Random) -> Row:
    good = rng.random() < 0.5
    thing = random_thing(rng, 0, 2)
    words = [phrase(name, thing[name], rng) for name in ("size", "color") if name in thing]
    noun = phrase("kind", noun_of(thing), rng)
    text = clause(good, " ".join([*words, noun]), rng)
    return {"sentence1": f"{text}.", "label": int(good)}


def _paraphrases(rng: random.Random) -> Row:
    """Return paraphrases of one thing or two; different scenes differ in a value or the order."""
    same = rng.random() < 0.5
    if rng.random() < 0.3:
        thing = random_thing(rng, 2, 4)
        again = thing if same else change_one(thing, rng)
        first, second = describe(thing, rng), describe(again, rng)
    else:
        left, right = random_pair(rng)
        others = ((right, left), (change_one(left, rng), right), (left, change_one(right, rng)))
        first = describe_pair(left, right, rng)
        second = describe_pair(*((left, right) if same else rng.choice(others)), rng)
    return {"sentence1": first, "sentence2": second, "label": int(same)}


def _answered(rng: random.Random) -> Row:
    thing = random_thing(rng, 1, 3)
    answered = rng.random() < 0.5
    asked_of = thing
    if answered:
        attribute = rng.choice([name for name in thing if name not in ("kind", "shape")])
    else:
        missing = [name for name in describable(thing) if name not in thing]
        if not missing or rng.random() < 0.3:  # ask about another thing
            asked_of = random_thing(rng, 2, 2)
            while noun_of(asked_of) == noun_of(thing):
                asked_of = random_thing(rng, 2, 2)
            shared = [name for name in describable(asked_of) if name in thing]
            missing = shared or describable(asked_of)
        attribute = rng.choice(missing)
    return {
        "sentence1": ask(attribute, asked_of, rng),
        "sentence2": describe(thing, rng),
        "label": int(not answered),
    }


def _entailed(rng: random.Random) -> Row:
    wanted = rng.random() < 0.5
    things = random_pair(rng)
    return {
        "sentence1": describe_pair(*things, rng),
        "sentence2": claim_about(things, wanted, rng),
        "label": int(not wanted),
    }


def _similarity(rng: random.Random) -> Row:
    scene = random_scene(rng)
    first = mentioned(scene, SIMILARITY)
    second = dict(first)
    for name in rng.sample(list(SIMILARITY), rng.randint(0, len(SIMILARITY))):
        if name == "kind":
            other = random_scene(rng)
            while noun_of(other) == noun_of(first):
                other = random_scene(rng)
            second = mentioned(second | {"kind": other["kind"]}, SIMILARITY)
            second.pop("shape", None)
            second |= {"shape": other["shape"]} if "shape" in other else {}
        else:
            second[name] = other_value(name, second[name], rng)
    return {
        "sentence1": describe(first, rng),
        "sentence2": describe(second, rng),
        "label": similarity(first, second),
    }


def similarity(first: Scene, second: Scene) -> float:
    """Return 0 to 5 points for the similarity of two things."""
    same = {name: first[name] == second[name] for name in SIMILARITY if name != "kind"}
    same["kind"] = noun_of(first) == noun_of(second)
    return sum(points for name, points in SIMILARITY.items() if same[name])


def _statement(rng: random.Random) -> str:
    if rng.random() < 0.4:
        return describe(random_thing(rng, 1, 3), rng)
    things = random_pair(rng)
    if rng.random() < 0.4:
        return describe_pair(*things, rng)
    return say(random_claim(things, rng), things, rng)


_SLIPS: Mapping[tuple[str, ...], tuple[str, ...]] = {
    ("is",): ("are",),
    ("are",): ("is",),
    ("has",): ("have",),
    ("have",): ("has",),
    ("than",): ("as",),
    ("as",): ("than",),
    ("larger",): ("large",),
    ("smaller",): ("small",),
    ("is", "not"): ("not", "is"),
    ("does", "not", "have"): ("does", "have", "not"),
    ("to", "the"): ("the", "to"),
    ("on", "the"): ("the", "on"),
    ("a",): ("an",),
    ("an",): ("a",),
}


def _corruptions(words: list[str]) -> list[list[str]]:
    """Return all sentences with one small mistake; they use words of the language only."""
    found: list[list[str]] = []
    for i, word in enumerate(words):
        following, after = (*words[i + 1 : i + 3], "", "")[:2]
        without = words[:i] + words[i + 1 :]
        found += [
            [*words[:i], *slip, *words[i + len(right) :]]
            for right, slip in _SLIPS.items()
            if tuple(words[i : i + len(right)]) == right
        ]
        if word in ("a", "an") or (word == "the" and following in _NOUNS):
            found.append(without)
        # "square" is a noun, and what a toy may be: "a red square toy" is fine in any order.
        noun_follows = following in _NOUNS | _PARTS and after not in _NOUNS
        if word in _ADJECTIVES and noun_follows:
            found.append([*words[:i], following, word, *words[i + 2 :]])
        if word in _NOUNS and words[i - 1] in _ADJECTIVES and following not in _NOUNS:
            found.append(without)
    return found


def corrupt(text: str, rng: random.Random) -> str:
    """Return the sentence with one mistake."""
    spoilt = _corruptions(text.replace(".", " .").split())
    return " ".join(rng.choice(spoilt)).replace(" .", ".")


def _acceptable(rng: random.Random) -> Row:
    text, fine = _statement(rng), rng.random() < 0.5
    return {"sentence1": text if fine else corrupt(text, rng), "label": int(fine)}


def _split(make: Callable[[random.Random], Row], label: object) -> DatasetDict:
    """Return distinct rows of one stream: first the training split, then the test split."""
    rng, rows, seen = random.Random(20), [], set[tuple[str, ...]]()
    while len(rows) < _TRAIN_ROWS + _TEST_ROWS:
        row = make(rng)
        key = tuple(sorted(value for name, value in row.items() if name != "label"))
        if key not in seen:
            seen.add(key)
            rows.append(row)
    columns = [name for name in rows[0] if name != "label"]
    features = Features({name: Value("string") for name in columns} | {"label": label})
    return DatasetDict(
        {
            "train": Dataset.from_list(rows[:_TRAIN_ROWS], features=features),
            "test": Dataset.from_list(rows[_TRAIN_ROWS:], features=features),
        }
    )


_TASKS: Mapping[str, tuple[Callable[[random.Random], Row], object]] = {
    "sst2": (_sentiment, ClassLabel(names=["negative", "positive"])),
    "mrpc": (_paraphrases, ClassLabel(names=["not_equivalent", "equivalent"])),
    "cola": (_acceptable, ClassLabel(names=["unacceptable", "acceptable"])),
    "qnli": (_answered, ClassLabel(names=["entailment", "not_entailment"])),
    "rte": (_entailed, ClassLabel(names=["entailment", "not_entailment"])),
    "stsb": (_similarity, Value("float32")),
}


@functools.cache
def _task(name: str) -> DatasetDict:
    return _split(*_TASKS[name])


GENERATORS: dict[str, Callable[[], DatasetDict]] = {
    name: functools.partial(_task, name) for name in _TASKS
}
"""Task -> function that returns its splits `train` and `test`, always the same rows."""
