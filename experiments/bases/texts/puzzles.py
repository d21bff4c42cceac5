"""Puzzles about the world that take a step of reasoning: order, comparison, negation, counting."""

from collections.abc import Sequence
from itertools import pairwise
from random import Random

from experiments.bases.texts.descriptions import with_article
from experiments.bases.texts.problems import COLOR_NAMES, NOUNS, NUMBERS, Ask, Problem, joined


def ordering(about: Random, rng: Random) -> Problem:
    """Return a problem about three things in a row, given two pairs of neighbors."""
    facts = ("The {a} is left of the {b}.", "The {b} is right of the {a}.")
    places = (("on the far left", 0), ("in the middle", 1), ("on the far right", 2))
    wording = ("Which thing is {}?", "Name the thing {}.")
    return _of_three("ordering", facts, places, wording, about, rng)


def comparison(about: Random, rng: Random) -> Problem:
    """Return a problem about the largest or smallest of three things, compared in pairs."""
    facts = ("The {b} is larger than the {a}.", "The {a} is smaller than the {b}.")
    places = (("smallest", 0), ("largest", 2))
    wording = ("Which thing is the {}?", "Name the {} thing.")
    return _of_three("comparison", facts, places, wording, about, rng)


def _of_three(
    kind: str,
    facts: Sequence[str],
    places: Sequence[tuple[str, int]],
    wording: tuple[str, str],
    about: Random,
    rng: Random,
) -> Problem:
    """Return a problem about the place of one of three things, given two facts on neighbors.

    Args:
        kind: Kind of the problem.
        facts: Ways to say that `a` comes before `b`.
        places: Places to ask for: their words and their index.
        wording: Question and task, with a gap for the place.
        about: Source of the text.
        rng: Source of the question.
    """
    order = about.sample(NOUNS, 3)
    given = [about.choice(facts).format(a=a, b=b) for a, b in pairwise(order)]
    about.shuffle(given)
    where, index = rng.choice(places)
    question, task = (words.format(where) for words in wording)
    answer = order[index]
    wrong = (*(noun for noun in order if noun != answer), _another(NOUNS, order))
    return Problem(kind, " ".join(given), question, task, answer, wrong)


def _another(words: Sequence[str], used: Sequence[str]) -> str:
    return next(word for word in words if word not in used)


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
    wrong = (*denied, _another(COLOR_NAMES, colors))
    return Problem("negation", text, question, task, answer, wrong)


def counting(about: Random, rng: Random) -> Problem:
    """Return a problem about the number of listed things with a color or of a kind."""
    colors = about.sample(COLOR_NAMES, 3)
    nouns = about.sample(NOUNS, 3)
    row = [(about.choice(colors), about.choice(nouns)) for _ in range(about.randint(3, 6))]
    text = f"The row has {joined([with_article(f'{color} {noun}') for color, noun in row])}."
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
    text = f"There are {joined([with_article(f'{has[n]} {n}') for n in nouns])}."
    for _ in range(about.randint(1, 2)):
        a, b = about.sample(nouns, 2)
        has[a], has[b] = has[b], has[a]
        text += f" The {a} and the {b} exchange colors."
    noun = rng.choice(nouns)
    answer = has[noun]
    question, task = f"What color is the {noun} now?", f"Name the color of the {noun} at the end."
    wrong = (*(c for c in colors if c != answer), _another(COLOR_NAMES, colors))
    return Problem("tracking", text, question, task, answer, wrong)


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
    question, task = "Is this true or false?", "Work out what this comes to."
    return Problem("truth", f"{text}.", question, task, answer, (wrong,))


PUZZLES: dict[str, Ask] = {
    "ordering": ordering,
    "comparison": comparison,
    "negation": negation,
    "counting": counting,
    "tracking": tracking,
    "truth": truth,
}
