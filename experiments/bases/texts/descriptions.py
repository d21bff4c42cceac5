"""Richer prose than captions: chosen attributes in other words, claims and questions about things.

A *thing* is the part of a scene that a text mentions: attribute -> value, always with ``kind``. The
text leaves all other attributes open.
"""

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pocket.captions import SETTINGS
from pocket.world import PARTS, Scene

SYNONYMS: dict[str, tuple[str, ...]] = {
    "red": ("red", "crimson"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden"),
    "green": ("green", "emerald"),
    "blue": ("blue", "azure"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rosy"),
    "white": ("white", "ivory"),
    "black": ("black", "ebony"),
    "toy": ("toy", "doll"),
    "car": ("car", "automobile"),
    "house": ("house", "cottage"),
    "circle": ("circle", "disc"),
    "large": ("large", "big"),
    "medium": ("small", "little"),
    "dotted": ("dotted", "spotted"),
    "striped": ("striped", "lined"),
    "plain": ("plain", "unpatterned"),
    "pointy": ("pointy", "sharp"),
    "round": ("round", "rounded"),
    "long": ("long", "lengthy"),
    "tall": ("tall", "slim"),
}
POSITIONS = {
    "left": ("on the left", "at the left edge"),
    "right": ("on the right", "at the right edge"),
    "center": ("in the middle", "at the center"),
}
# Attribute -> the part with this color, and whether the part is plural.
PART_OF = {
    "ear_color": ("ears", True),
    "feet_color": ("feet", True),
    "wheel_color": ("wheels", True),
    "roof_color": ("roof", False),
    "door_color": ("door", False),
}
_QUESTIONS = {
    "color": ("what color is the {}?", "which color does the {} have?"),
    "size": ("how large is the {}?", "what size is the {}?"),
    "pattern": ("what pattern does the {} have?", "which pattern is on the {}?"),
    "body": ("what form does the {} have?", "which form is the {}?"),
    "ears": ("what form do the ears of the {} have?", "which ears does the {} have?"),
    "position": ("on which side is the {}?", "at which edge is the {}?"),
    "background": ("where is the {}?", "in what place is the {}?"),
}


def _setting_phrases(background: str) -> tuple[str, ...]:
    on_color = (f"on a {background} background", f"in front of a {background} wall")
    return SETTINGS.get(background, on_color)


def noun_of(thing: Scene) -> str:
    """Return the plain word for a thing."""
    return thing.get("shape", thing["kind"])


def phrase(attribute: str, value: str, rng: random.Random) -> str:
    """Return a random phrase for a value: "crimson", "under the night sky"."""
    if attribute == "position":
        forms = POSITIONS[value]
    elif attribute == "background":
        forms = _setting_phrases(value)
    else:
        forms = SYNONYMS.get(value, (value,))
    return forms[0] if len(forms) == 1 or rng.random() < 0.65 else forms[1]


def with_article(words: str) -> str:
    """Return the words with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def describable(scene: Scene) -> list[str]:
    """Return the attributes that a description can mention, without the kind."""
    own = [name for name in PARTS[scene["kind"]] if name != "shape"]
    return [*own, "size", "position", "background"]


def mentioned(scene: Scene, attributes: Iterable[str]) -> Scene:
    """Return the thing with these attributes of a scene and no others."""
    kept = {"kind", "shape", *attributes}
    return {name: value for name, value in scene.items() if name in kept}


def _head(thing: Scene, rng: random.Random) -> str:
    words = [
        phrase(name, thing[name], rng)
        for name in ("size", "pattern", "color", "body")
        if name in thing
    ]
    return " ".join([*words, phrase("kind", noun_of(thing), rng)])


def _parts(thing: Scene, rng: random.Random) -> list[str]:
    """Return the parts as noun phrases: "blue pointy ears", "a red roof"."""
    found = []
    for name, (part, several) in PART_OF.items():
        words = [phrase(name, thing[name], rng)] if name in thing else []
        if part == "ears" and "ears" in thing:
            words.append(phrase("ears", thing["ears"], rng))
        if words:
            whole = " ".join([*words, part])
            found.append(whole if several else with_article(whole))
    rng.shuffle(found)
    return found


def describe(thing: Scene, rng: random.Random) -> str:
    """Return one or two sentences on all of a thing, in random order and words."""
    head, parts = with_article(_head(thing, rng)), _parts(thing, rng)
    places = [
        phrase(name, thing[name], rng) for name in ("position", "background") if name in thing
    ]
    tail, form = " and ".join(parts), rng.randrange(4)
    having = f" with {tail}" if parts else ""
    if form == 1 and len(places) == 1:
        return f"{places[0]} there is {head}{having}."
    placed = " ".join(["", *places])
    if form == 2 and parts:
        return f"there is {head}{placed}. it has {tail}."
    if form == 3:
        return f"we see {head}{placed}{having and ' ' + having.strip()}."
    return f"{head}{having}{placed}."


def describe_pair(left: Scene, right: Scene, rng: random.Random) -> str:
    """Return a sentence on two things and their order."""
    first, second = with_article(_head(left, rng)), with_article(_head(right, rng))
    form = rng.randrange(4)
    if form == 0:
        return f"{first} is to the left of {second}."
    if form == 1:
        return f"{second} is to the right of {first}."
    if form == 2:
        return f"there is {first} on the left and {second} on the right."
    return f"on the right there is {second} and on the left {first}."


@dataclass(frozen=True)
class Claim:
    """The statement of a sentence about one thing or two.

    Attributes:
        attribute: An attribute of scenes, or ``beside`` (left, right), ``than`` (larger, smaller),
            ``same`` (color).
        value: Claimed value.
        negated: Whether the sentence denies the value.
        subject: Index of the thing.
        other: Index of the thing to compare with.
    """

    attribute: str
    value: str
    negated: bool = False
    subject: int = 0
    other: int = 1


def holds(claim: Claim, things: Sequence[Scene]) -> bool | None:
    """Return whether a claim is true of things from left to right; None if that is open."""
    subject, other = things[claim.subject], things[min(claim.other, len(things) - 1)]
    if claim.attribute == "beside":
        found = (claim.value == "left") == (claim.subject < claim.other)
    elif claim.attribute == "than":
        if "size" not in subject or "size" not in other:
            return None
        wanted = ("large", "medium") if claim.value == "larger" else ("medium", "large")
        found = (subject["size"], other["size"]) == wanted
    elif claim.attribute == "same":
        if "color" not in subject or "color" not in other:
            return None
        found = subject["color"] == other["color"]
    elif claim.attribute in subject:
        found = subject[claim.attribute] == claim.value
    else:
        return None
    return found != claim.negated


def say(claim: Claim, things: Sequence[Scene], rng: random.Random) -> str:
    """Return the claim as a sentence."""
    subject = "the " + phrase("kind", noun_of(things[claim.subject]), rng)
    no = " not" if claim.negated else ""
    if claim.attribute in ("beside", "than", "same"):
        other = "the " + phrase("kind", noun_of(things[claim.other]), rng)
        if claim.attribute == "beside":
            return f"{subject} is{no} to the {claim.value} of {other}."
        if claim.attribute == "than":
            return f"{subject} is{no} {claim.value} than {other}."
        if rng.random() < 0.5:
            return f"{subject} does{no} have the same color as {other}.".replace("does have", "has")
        return f"{subject} and {other} are{no} of one color."
    word = phrase(claim.attribute, claim.value, rng)
    part, several = PART_OF.get(claim.attribute, ("ears", True))
    if claim.attribute == "ears" or claim.attribute in PART_OF:
        if rng.random() < 0.5:
            return f"the {part} of {subject} {'are' if several else 'is'}{no} {word}."
        owned = f"{word} {part}" if several else with_article(f"{word} {part}")
        return f"{subject} {'does not have' if claim.negated else 'has'} {owned}."
    return f"{subject} is{no} {word}."


def ask(attribute: str, thing: Scene, rng: random.Random) -> str:
    """Return a question whose answer is the value of the attribute."""
    noun = phrase("kind", noun_of(thing), rng)
    if attribute in PART_OF:
        part, several = PART_OF[attribute]
        verb, auxiliary = ("are", "do") if several else ("is", "does")
        forms = (
            f"what color {verb} the {part} of the {noun}?",
            f"which color {auxiliary} the {part} of the {noun} have?",
        )
        return rng.choice(forms)
    return rng.choice(_QUESTIONS[attribute]).format(noun)
