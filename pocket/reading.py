"""What the text encoder reads before any task: short texts that say one thing in two ways, or not.

Each is one sequence or a pair. Many have a verdict on it, a word that can only be guessed by
comparing ("same", "false", "untold"): it stands in front, or is asked for at the start token.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass

from pocket.captions import random_caption
from pocket.descriptions import (
    Claim,
    ask,
    describe,
    describe_pair,
    holds,
    noun_of,
    phrase,
    say,
    tellable,
    told,
)
from pocket.opinions import clause, gushing, sentence
from pocket.world import ATTRIBUTES, Scene, random_scene

VERDICTS = ("same", "different", "true", "false", "open", "told", "untold", "good", "bad")
LINKS = ("because", "although")


@dataclass(frozen=True)
class Text:
    """A text to read.

    Attributes:
        sentences: One sequence, or the two of a pair.
        verdict: What is asked for at the start token; "" asks nothing.
    """

    sentences: tuple[str, ...]
    verdict: str = ""


def _judged(verdict: str, rng: random.Random, first: str, *second: str) -> Text:
    if rng.random() < 0.6:
        return Text((first, *second), verdict)
    return Text((f"{verdict}: {first}", *second))


def other_value(attribute: str, value: str, rng: random.Random) -> str:
    """Another value of the attribute."""
    return rng.choice([v for v in ATTRIBUTES[attribute] if v != value])


def change_one(thing: Scene, rng: random.Random) -> Scene:
    """The thing with one value changed, or the colours of two of its parts exchanged."""
    colors = [name for name in thing if name.endswith("color")]
    if len(colors) > 1 and rng.random() < 0.4:
        first, second = rng.sample(colors, 2)
        if thing[first] != thing[second]:
            return thing | {first: thing[second], second: thing[first]}
    attribute = rng.choice([name for name in thing if name not in ("kind", "shape")])
    return thing | {attribute: other_value(attribute, thing[attribute], rng)}


def random_thing(rng: random.Random, least: int = 1, most: int = 4) -> Scene:
    """A thing of which some attributes are told."""
    scene = random_scene(rng)
    names = tellable(scene)
    return told(scene, rng.sample(names, min(len(names), rng.randint(least, most))))


def random_pair(rng: random.Random) -> tuple[Scene, Scene]:
    """Two things of different nouns, from left to right, told by size and surface."""
    left = random_scene(rng)
    right = random_scene(rng)
    while noun_of(right) == noun_of(left):
        right = random_scene(rng)
    if rng.random() < 0.4:
        right = right | {"color": left["color"]}
    names = [
        "color",
        *(name for name, often in (("size", 0.7), ("pattern", 0.3)) if rng.random() < often),
    ]
    return told(left, names), told(right, names)


def random_claim(things: tuple[Scene, ...], rng: random.Random) -> Claim:
    """A claim that may be true, false or open of one thing or two."""
    subject = rng.randrange(len(things))
    negated = rng.random() < 0.4
    if len(things) == 2 and rng.random() < 0.6:
        attribute, values = rng.choice(
            (("beside", ("left", "right")), ("than", ("larger", "smaller")), ("same", ("color",)))
        )
        return Claim(attribute, rng.choice(values), negated, subject, 1 - subject)
    thing = things[subject]
    known = [name for name in thing if name not in ("kind", "shape")]
    attribute = rng.choice(known if rng.random() < 0.8 else tellable(thing))
    value = thing.get(attribute, rng.choice(ATTRIBUTES[attribute]))
    if rng.random() < 0.5:
        value = other_value(attribute, value, rng)
    return Claim(attribute, value, negated, subject)


def _captioned(rng: random.Random) -> Text:
    return Text((random_caption(random_scene(rng), rng) + ".",))


def _paraphrase(rng: random.Random) -> Text:
    thing = random_thing(rng, 1, 4)
    same = rng.random() < 0.7
    again = thing if same else change_one(thing, rng)
    first, second = describe(thing, rng), describe(again, rng)
    if same and rng.random() < 0.6:
        return Text((first, second))
    return _judged("same" if same else "different", rng, first, second)


def _claimed(rng: random.Random) -> Text:
    if rng.random() < 0.5:
        pair = random_pair(rng)
        things: tuple[Scene, ...] = pair
        text = describe_pair(*pair, rng)
    else:
        thing = random_thing(rng, 1, 3)
        things, text = (thing,), describe(thing, rng)
    claim, plain = random_claim(things, rng), rng.random() < 0.4
    while plain and not holds(claim, things):
        claim = random_claim(things, rng)
    said = say(claim, things, rng)
    if plain:
        return Text((text, said))
    verdict = {True: "true", False: "false", None: "open"}[holds(claim, things)]
    return _judged(verdict, rng, text, said)


def _implied(rng: random.Random) -> Text:
    """The same relation told from either side."""
    pair = random_pair(rng)
    subject = rng.randrange(2)
    words = rng.choice((("left", "right"), ("larger", "smaller")))
    attribute = "beside" if "left" in words else "than"
    first, second = rng.sample(words, 2)
    one = Claim(attribute, first, False, subject, 1 - subject)
    other = Claim(attribute, second, False, 1 - subject, subject)
    return Text((say(one, pair, rng), say(other, pair, rng)))


def _asked(rng: random.Random) -> Text:
    thing = random_thing(rng, 1, 4)
    known = [name for name in thing if name not in ("kind", "shape")]
    missing = [name for name in tellable(thing) if name not in thing]
    attribute = rng.choice(missing if missing and rng.random() < 0.4 else known)
    question = ask(attribute, thing, rng)
    if attribute in thing and rng.random() < 0.3:
        return Text((question, say(Claim(attribute, thing[attribute]), (thing,), rng)))
    return _judged("told" if attribute in thing else "untold", rng, question, describe(thing, rng))


def _felt(rng: random.Random) -> Text:
    good = rng.random() < 0.5
    thing = phrase("kind", noun_of(random_scene(rng)), rng)
    if rng.random() < 0.4:
        return Text((gushing(good, thing, rng),))
    negation = rng.choice((0.0, 0.45))
    if rng.random() < 0.5:
        return _judged("good" if good else "bad", rng, sentence(good, thing, rng, negation))
    agree = rng.random() < 0.5
    first, second = (clause(side, thing, rng, negation) for side in (good, good == agree))
    return Text((f"{first} {LINKS[not agree]} {second}.",))


_KINDS: tuple[tuple[Callable[[random.Random], Text], float], ...] = (
    (_captioned, 0.06),
    (_paraphrase, 0.28),
    (_claimed, 0.28),
    (_implied, 0.05),
    (_asked, 0.16),
    (_felt, 0.17),
)


def random_text(rng: random.Random) -> Text:
    """One text to read."""
    kinds, weights = zip(*_KINDS, strict=True)
    return rng.choices(kinds, weights)[0](rng)


def texts(count: int, seed: int) -> list[Text]:
    """`count` texts to read, always the same."""
    rng = random.Random(seed)
    return [random_text(rng) for _ in range(count)]
