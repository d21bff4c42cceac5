"""What the text encoder reads before any task: short texts that say one thing in two ways, or not.

Each is one sequence or a pair. Half of the work is done by a word that can only be guessed by
comparing the two halves ("same", "false", "because"), which is masked more often than others.
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
from pocket.opinions import clause, sentence
from pocket.world import ATTRIBUTES, Scene, random_scene

Text = tuple[str, ...]  # one sentence, or the two of a pair

VERDICTS = (
    *("same", "different", "true", "false", "open"),
    *("told", "untold", "good", "bad", "because", "although"),
)
"""The words that compare."""


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
    names = ["color"] + [name for name in ("size", "pattern") if rng.random() < 0.6]
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
    scene = random_scene(rng)
    return (random_caption(scene, rng) + ".",)


def _paraphrase(rng: random.Random) -> Text:
    thing = random_thing(rng, 1, 4)
    same = rng.random() < 0.5
    again = thing if same else change_one(thing, rng)
    first, second = describe(thing, rng), describe(again, rng)
    forms: tuple[Text, ...] = (
        (f"{'same' if same else 'different'}: {first}", second),
        (first, f"{second} the two are {'the same' if same else 'different'}."),
        (f"{first} {second} {'same' if same else 'different'}.",),
    )
    return rng.choice(forms)


def _claimed(rng: random.Random) -> Text:
    if rng.random() < 0.5:
        pair = random_pair(rng)
        things: tuple[Scene, ...] = pair
        text = describe_pair(*pair, rng)
    else:
        thing = random_thing(rng, 1, 3)
        things, text = (thing,), describe(thing, rng)
    claim = random_claim(things, rng)
    verdict = {True: "true", False: "false", None: "open"}[holds(claim, things)]
    said = say(claim, things, rng)
    forms: tuple[Text, ...] = (
        (text, f"{verdict}: {said}"),
        (f"{verdict}: {text}", said),
        (text, f"{said} this is {verdict}."),
    )
    return rng.choice(forms)


def _implied(rng: random.Random) -> Text:
    """A claim and another that follows: reversed, or denied of other values."""
    pair = random_pair(rng)
    claim = random_claim(pair, rng)
    first = say(claim, pair, rng)
    opposite = {"left": "right", "right": "left", "larger": "smaller", "smaller": "larger"}
    if claim.attribute in ("beside", "than"):
        follows = Claim(
            claim.attribute,
            opposite[claim.value],
            claim.negated and claim.attribute == "beside",
            claim.other,
            claim.subject,
        )
        if claim.negated and claim.attribute == "than":
            follows = claim
    elif claim.attribute == "same" or claim.negated:
        follows = claim
    else:
        value = other_value(claim.attribute, claim.value, rng)
        follows = Claim(claim.attribute, value, True, claim.subject)
    return (first, say(follows, pair, rng))


def _asked(rng: random.Random) -> Text:
    thing = random_thing(rng, 1, 4)
    known = [name for name in thing if name not in ("kind", "shape")]
    answered = rng.random() < 0.6
    missing = [name for name in tellable(thing) if name not in thing]
    attribute = rng.choice(known if answered or not missing else missing)
    question, text = ask(attribute, thing, rng), describe(thing, rng)
    if attribute not in thing:
        return rng.choice(((question, f"{text} untold."), (f"untold: {question}", text)))
    answer = phrase(attribute, thing[attribute], rng)
    forms: tuple[Text, ...] = (
        (question, f"{text} told: {answer}."),
        (f"told: {question}", text),
        (question, say(Claim(attribute, thing[attribute]), (thing,), rng)),
    )
    return rng.choice(forms)


def _felt(rng: random.Random) -> Text:
    good = rng.random() < 0.5
    thing = phrase("kind", noun_of(random_scene(rng)), rng)
    negation = rng.choice((0.0, 0.45))
    if rng.random() < 0.5:
        verdict = "good" if good else "bad"
        said = sentence(good, thing, rng, negation)
        return rng.choice(((f"{said} {verdict}.",), (f"{verdict}: {said}",)))
    agree = rng.random() < 0.5
    link = "because" if agree else "although"
    first, second = (clause(side, thing, rng, negation) for side in (good, good == agree))
    return (f"{first} {link} {second}.",)


_KINDS: tuple[tuple[Callable[[random.Random], Text], float], ...] = (
    (_captioned, 0.06),
    (_paraphrase, 0.27),
    (_claimed, 0.27),
    (_implied, 0.07),
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


