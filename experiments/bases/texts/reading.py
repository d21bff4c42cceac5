"""Texts for pre-training the text encoder: short texts that say one thing in two ways.

Each is one sequence or a pair. A hidden word of one half can be found in the other, in the same
words or in others: two descriptions, a claim that follows, a question and its answer. Some pairs
begin with a verdict: does the second half follow from the first? This replaces the natural language
inference that usually precedes the tuning to smaller tasks.
"""

import random
from collections.abc import Callable

from experiments.bases.texts.descriptions import (
    Claim,
    ask,
    describable,
    describe,
    describe_pair,
    holds,
    mentioned,
    noun_of,
    phrase,
    say,
)
from experiments.bases.texts.opinions import clause, gushing, sentence
from pocket.captions import random_caption
from pocket.world import ATTRIBUTES, Scene, random_scene

Text = tuple[str, ...]
"""One sequence, or the two sequences of a pair."""

VERDICTS = ("true", "false")


def other_value(attribute: str, value: str, rng: random.Random) -> str:
    """Return another value of the attribute."""
    return rng.choice([v for v in ATTRIBUTES[attribute] if v != value])


def change_one(thing: Scene, rng: random.Random) -> Scene:
    """Return the thing with one value changed, or with the colors of two parts exchanged."""
    colors = [name for name in thing if name.endswith("color")]
    if len(colors) > 1 and rng.random() < 0.4:
        first, second = rng.sample(colors, 2)
        if thing[first] != thing[second]:
            return thing | {first: thing[second], second: thing[first]}
    attribute = rng.choice([name for name in thing if name not in ("kind", "shape")])
    return thing | {attribute: other_value(attribute, thing[attribute], rng)}


def random_thing(rng: random.Random, least: int = 1, most: int = 3) -> Scene:
    """Return a random thing with some attributes."""
    scene = random_scene(rng)
    return mentioned(scene, rng.sample(describable(scene), rng.randint(least, most)))


def random_pair(rng: random.Random) -> tuple[Scene, Scene]:
    """Return two things with different nouns, from left to right, with size and surface."""
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
    return mentioned(left, names), mentioned(right, names)


def random_claim(things: tuple[Scene, ...], rng: random.Random, negation: float = 0.15) -> Claim:
    """Return a claim about one thing or two; it may be true, false or open."""
    subject = rng.randrange(len(things))
    negated = rng.random() < negation
    if len(things) == 2 and rng.random() < 0.6:
        attribute, values = rng.choice(
            (("beside", ("left", "right")), ("than", ("larger", "smaller")), ("same", ("color",)))
        )
        return Claim(attribute, rng.choice(values), negated, subject, 1 - subject)
    thing = things[subject]
    known = [name for name in thing if name not in ("kind", "shape")]
    attribute = rng.choice(known if rng.random() < 0.9 else describable(thing))
    value = thing.get(attribute, rng.choice(ATTRIBUTES[attribute]))
    if rng.random() < 0.5:
        value = other_value(attribute, value, rng)
    return Claim(attribute, value, negated, subject)


def _captioned(rng: random.Random) -> Text:
    return (random_caption(random_scene(rng), rng) + ".",)


def _paraphrased(rng: random.Random) -> Text:
    thing = random_thing(rng)
    return (describe(thing, rng), describe(thing, rng))


def _described(rng: random.Random, pairs: float) -> tuple[str, tuple[Scene, ...]]:
    """Return a description of one thing or two, and the things."""
    if rng.random() < pairs:
        left, right = random_pair(rng)
        return describe_pair(left, right, rng), (left, right)
    thing = random_thing(rng)
    return describe(thing, rng), (thing,)


def claim_about(
    things: tuple[Scene, ...], true: bool, rng: random.Random, negation: float = 0.15
) -> str:
    """Return a sentence that is true of the things, or one that is false or open."""
    while True:
        claim = random_claim(things, rng, negation)
        if (holds(claim, things) is True) == true:
            return say(claim, things, rng)


def _claimed(rng: random.Random) -> Text:
    """Return a description and a conclusion."""
    text, things = _described(rng, pairs=0.6)
    return (text, claim_about(things, True, rng))


def _judged(rng: random.Random) -> Text:
    """Return a verdict and its pair: claims, paraphrases, opinions.

    There are no negations: with them the model learns neither verdicts nor negations.
    """
    true, about = rng.random() < 0.5, rng.random()
    if about < 0.5:
        first, things = _described(rng, pairs=0.4)
        second = claim_about(things, true, rng, negation=0)
    elif about < 0.8:
        thing = random_thing(rng)
        first = describe(thing, rng)
        second = describe(thing if true else change_one(thing, rng), rng)
    else:
        noun, good = phrase("kind", noun_of(random_scene(rng)), rng), rng.random() < 0.5
        first, second = (clause(side, noun, rng, negation=0) + "." for side in (good, good == true))
    return (f"{VERDICTS[not true]}: {first}", second)


def _implied(rng: random.Random) -> Text:
    """Return the same relation from both sides."""
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
    (_paraphrased, 0.18),
    (_claimed, 0.15),
    (_implied, 0.05),
    (_answered, 0.1),
    (_felt, 0.09),
    (_judged, 0.38),
)


def texts(count: int, seed: int) -> list[Text]:
    """Return `count` texts; a seed always gives the same."""
    rng = random.Random(seed)
    kinds, weights = zip(*_KINDS, strict=True)
    return [kind(rng) for kind in rng.choices(kinds, weights, k=count)]
