"""What the text encoder reads before any task: short texts that say one thing in two ways.

Each is one sequence or a pair; a word that is hidden in one half can be found in the other, in the
same words or not: a description and another, a claim that follows, a question and its answer.
"""

import random
from collections.abc import Callable

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

Text = tuple[str, ...]
"""One sequence, or the two of a pair."""


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


def random_thing(rng: random.Random, least: int = 1, most: int = 3) -> Scene:
    """A thing of which some attributes are told."""
    scene = random_scene(rng)
    return told(scene, rng.sample(tellable(scene), rng.randint(least, most)))


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
    attribute = rng.choice(known if rng.random() < 0.9 else tellable(thing))
    value = thing.get(attribute, rng.choice(ATTRIBUTES[attribute]))
    if rng.random() < 0.5:
        value = other_value(attribute, value, rng)
    return Claim(attribute, value, negated, subject)


def _captioned(rng: random.Random) -> Text:
    return (random_caption(random_scene(rng), rng) + ".",)


def _paraphrased(rng: random.Random) -> Text:
    thing = random_thing(rng)
    return (describe(thing, rng), describe(thing, rng))


def _claimed(rng: random.Random) -> Text:
    """A description and what follows from it."""
    if rng.random() < 0.6:
        things: tuple[Scene, ...] = random_pair(rng)
        text = describe_pair(things[0], things[1], rng)
    else:
        things = (random_thing(rng),)
        text = describe(things[0], rng)
    while True:
        claim = random_claim(things, rng)
        if holds(claim, things):
            return (text, say(claim, things, rng))


def _implied(rng: random.Random) -> Text:
    """The same relation told from either side."""
    pair = random_pair(rng)
    subject = rng.randrange(2)
    words = rng.choice((("left", "right"), ("larger", "smaller")))
    attribute = "beside" if "left" in words else "than"
    first, second = rng.sample(words, 2)
    one = Claim(attribute, first, False, subject, 1 - subject)
    other = Claim(attribute, second, False, 1 - subject, subject)
    return (say(one, pair, rng), say(other, pair, rng))


def _answered(rng: random.Random) -> Text:
    thing = random_thing(rng)
    attribute = rng.choice([name for name in thing if name not in ("kind", "shape")])
    question = ask(attribute, thing, rng)
    if rng.random() < 0.5:
        return (question, say(Claim(attribute, thing[attribute]), (thing,), rng))
    return (question, describe(thing, rng))


def _felt(rng: random.Random) -> Text:
    good = rng.random() < 0.5
    thing = phrase("kind", noun_of(random_scene(rng)), rng)
    form = rng.random()
    if form < 0.5:
        return (gushing(good, thing, rng),)
    if form < 0.7:
        return (sentence(good, thing, rng),)
    agree = rng.random() < 0.5
    first, second = (clause(side, thing, rng) for side in (good, good == agree))
    return (f"{first} {'because' if agree else 'although'} {second}.",)


_KINDS: tuple[tuple[Callable[[random.Random], Text], float], ...] = (
    (_captioned, 0.05),
    (_paraphrased, 0.33),
    (_claimed, 0.25),
    (_implied, 0.05),
    (_answered, 0.14),
    (_felt, 0.18),
)


def texts(count: int, seed: int) -> list[Text]:
    """`count` texts to read, always the same."""
    rng = random.Random(seed)
    kinds, weights = zip(*_KINDS, strict=True)
    return [kind(rng) for kind in rng.choices(kinds, weights, k=count)]
