"""Puzzles about the world that take a step of reasoning: order, comparison, negation, counting."""

from itertools import pairwise
from random import Random

from experiments.bases.texts.problems import (
    COLOR_NAMES,
    NOUNS,
    NUMBERS,
    Ask,
    Problem,
    article,
    joined,
)


def ordering(about: Random, rng: Random) -> Problem:
    """Return a problem about three things in a row, given two pairs of neighbors."""
    row = about.sample(NOUNS, 3)
    facts = [
        about.choice((f"The {a} is left of the {b}.", f"The {b} is right of the {a}."))
        for a, b in pairwise(row)
    ]
    about.shuffle(facts)
    place, answer = rng.choice(tuple(zip(("far left", "middle", "far right"), row, strict=True)))
    where = f"{'in' if place == 'middle' else 'on'} the {place}"
    wrong = tuple(n for n in row if n != answer)
    return Problem(
        "ordering",
        " ".join(facts),
        f"Which thing is {where}?",
        f"Name the thing {where}.",
        answer,
        (*wrong, next(n for n in NOUNS if n not in row)),
    )


def comparison(about: Random, rng: Random) -> Problem:
    """Return a problem about the largest or smallest of three things, compared in pairs."""
    order = about.sample(NOUNS, 3)  # from small to large
    facts = [
        about.choice((f"The {b} is larger than the {a}.", f"The {a} is smaller than the {b}."))
        for a, b in pairwise(order)
    ]
    about.shuffle(facts)
    word, answer = rng.choice((("smallest", order[0]), ("largest", order[2])))
    wrong = tuple(n for n in order if n != answer)
    return Problem(
        "comparison",
        " ".join(facts),
        f"Which thing is the {word}?",
        f"Name the {word} thing.",
        answer,
        (*wrong, next(n for n in NOUNS if n not in order)),
    )


def negation(about: Random, rng: Random) -> Problem:
    """Return a problem with several colors, of which all but one are denied."""
    noun = about.choice(NOUNS)
    colors = about.sample(COLOR_NAMES, 3)
    answer = about.choice(colors)
    denied = [c for c in colors if c != answer]
    about.shuffle(denied)
    text = (
        f"The {noun} is {colors[0]}, {colors[1]} or {colors[2]}. "
        f"It is not {denied[0]}. It is not {denied[1]}."
    )
    question, task = f"What color is the {noun}?", f"Name the color of the {noun}."
    other = next(c for c in COLOR_NAMES if c not in colors)
    return Problem("negation", text, question, task, answer, (*denied, other))


def counting(about: Random, rng: Random) -> Problem:
    """Return a problem about the number of listed things with a color or of a kind."""
    colors = about.sample(COLOR_NAMES, 3)
    nouns = about.sample(NOUNS, 3)
    row = [(about.choice(colors), about.choice(nouns)) for _ in range(about.randint(3, 6))]
    text = f"The row has {joined([article(f'{color} {noun}') for color, noun in row])}."
    place = rng.randrange(2)  # by color or by noun
    asked = rng.choice(row)[place]
    count = sum(thing[place] == asked for thing in row)
    what = f"{asked}s" if place else f"{asked} things"
    question, task = f"How many {what} are in the row?", f"Count the {what} in the row."
    wrong = tuple(NUMBERS[n] for n in range(1, 6) if n != count)
    return Problem("counting", text, question, task, NUMBERS[count], wrong[:3])


def tracking(about: Random, rng: Random) -> Problem:
    """Return a problem about things that exchange their colors, once or twice."""
    nouns, colors = about.sample(NOUNS, 3), about.sample(COLOR_NAMES, 3)
    has = dict(zip(nouns, colors, strict=True))
    text = f"There are {joined([article(f'{has[n]} {n}') for n in nouns])}."
    for _ in range(about.randint(1, 2)):
        a, b = about.sample(nouns, 2)
        has[a], has[b] = has[b], has[a]
        text += f" The {a} and the {b} exchange colors."
    noun = rng.choice(nouns)
    answer = has[noun]
    question, task = f"What color is the {noun} now?", f"Name the color of the {noun} at the end."
    wrong = tuple(c for c in colors if c != answer)
    other = next(c for c in COLOR_NAMES if c not in colors)
    return Problem("tracking", text, question, task, answer, (*wrong, other))


def truth(about: Random, rng: Random) -> Problem:
    """Return a problem with an expression of true, false, not, and, or, and brackets."""

    def leaf() -> tuple[str, bool]:
        value = about.random() < 0.5
        if about.random() < 0.4:
            return f"not {str(value).lower()}", not value
        return str(value).lower(), value

    (a, va), (b, vb) = leaf(), leaf()
    word = about.choice(("and", "or"))
    value = (va and vb) if word == "and" else (va or vb)
    text = f"{a} {word} {b}"
    if about.random() < 0.5:
        c, vc = leaf()
        second = about.choice(("and", "or"))
        text = f"( {text} ) {second} {c}"
        value = (value and vc) if second == "and" else (value or vc)
    answer, wrong = str(value).lower(), str(not value).lower()
    return Problem(
        "truth",
        f"{text}.",
        "Is this true or false?",
        "Work out what this comes to.",
        answer,
        (wrong,),
    )


PUZZLES: dict[str, Ask] = {
    "ordering": ordering,
    "comparison": comparison,
    "negation": negation,
    "counting": counting,
    "tracking": tracking,
    "truth": truth,
}
