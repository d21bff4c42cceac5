"""Sentences that praise or blame a thing, under up to three negations."""

import random

PRAISE = ("charming", "lovely", "delightful", "splendid", "pleasant", "wonderful", "pretty")
BLAME = ("dull", "ugly", "dreadful", "boring", "awful", "horrid", "gloomy")
LIKING = ("like", "adore", "enjoy", "admire", "treasure")
DISLIKING = ("dislike", "hate", "despise", "detest", "scorn")
_DEGREES = ("", "", "very ", "truly ", "quite ", "really ")
_NEGATIONS = ("not ", "never ", "hardly ", "by no means ", "anything but ", "far from ")
_PEOPLE = ("mia", "tom", "anna", "ben", "every child", "my aunt", "the painter")
_DENIALS = ("it is not true that ", "it is wrong to say that ", "no one believes that ")


def _praises(good: bool, thing: str, negated: bool, rng: random.Random) -> str:
    """Call a thing good or bad with an adjective."""
    adjective = rng.choice(PRAISE if good != negated else BLAME)
    return f"the {thing} is {rng.choice(_NEGATIONS if negated else _DEGREES)}{adjective}"


def _likes(good: bool, thing: str, negated: bool, rng: random.Random) -> str:
    """Call a thing good or bad by somebody's feelings."""
    verb = rng.choice(LIKING if good != negated else DISLIKING)
    if not negated:
        return f"{rng.choice(_PEOPLE)} {verb}s the {thing}"
    if rng.random() < 0.4:
        return f"nobody {verb}s the {thing}"
    return f"{rng.choice(_PEOPLE)} does not {verb} the {thing}"


def clause(good: bool, thing: str, rng: random.Random, negation: float = 0.2) -> str:
    """Return a clause without full stop that, on the whole, praises or blames a thing.

    Args:
        good: Whether the clause praises.
        thing: Subject of the clause.
        rng: Source of randomness.
        negation: Probability of a negation; half of it for a second one on the whole clause.
    """
    denied = rng.random() < negation / 2
    negated = rng.random() < negation
    said = rng.choice((_praises, _likes))(good != denied, thing, negated, rng)
    return rng.choice(_DENIALS) + said if denied else said


def sentence(good: bool, thing: str, rng: random.Random) -> str:
    """Return one clause, or two of which the main one decides."""
    main, form = clause(good, thing, rng), rng.random()
    if form < 0.6:
        return f"{main}."
    aside = clause(not good, thing, rng)
    if form < 0.8:
        return f"although {aside}, {main}."
    return f"{aside}, but in the end {main}."


def gushing(good: bool, thing: str, rng: random.Random) -> str:
    """Return a sentence of several words with one opinion, so that each can be guessed."""
    words = rng.sample(PRAISE if good else BLAME, 3)
    verb = rng.choice(LIKING if good else DISLIKING)
    person = rng.choice(_PEOPLE)
    if rng.random() < 0.4:
        wrong = rng.choice(BLAME if good else PRAISE)
        return f"the {thing} is not {wrong} but {words[0]} and {person} {verb}s it."
    first, second, third = words
    return f"{person} {verb}s the {first} {thing} because it is {second} and {third}."
