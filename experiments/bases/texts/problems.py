"""Problems about the world, each with one right answer: scenes, individuals, shelves, amounts.

A problem is worded as a question or as an instruction. Its subject and its question are drawn from
two generators, so that one text can have several questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from pocket.captions import setting_phrase
from pocket.world import ATTRIBUTES, COLORS, INDIVIDUALS, Scene, random_scene

COLOR_NAMES = tuple(COLORS)
NOUNS = ("toy", "car", "house", *ATTRIBUTES["shape"])
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
_SINGULAR = ("roof", "door")
_NAMES = tuple(INDIVIDUALS)
ORDINALS = ("first", "second", "third", "fourth")
PART_NOUNS = {
    "ear_color": "ears",
    "feet_color": "feet",
    "wheel_color": "wheels",
    "roof_color": "roof",
    "door_color": "door",
}


@dataclass(frozen=True)
class Problem:
    """A question with one right answer.

    Attributes:
        kind: Kind of the problem.
        text: Text with the facts; empty if the answer needs knowledge.
        question: The problem as a question.
        task: The problem as an instruction.
        answer: Right answer.
        wrong: Plausible wrong answers.
    """

    kind: str
    text: str
    question: str
    task: str
    answer: str
    wrong: tuple[str, ...] = ()


Ask = Callable[[Random, Random], Problem]
"""Function that draws a text from the first generator and a question from the second."""


def article(words: str) -> str:
    """Return the words with "a" or "an" before them."""
    return ("an " if words[0] in "aeiou" else "a ") + words


def plural(noun: str, count: int) -> str:
    """Return the noun with its number: "one car", "three cars"."""
    return f"{NUMBERS[count]} {noun}" + ("" if count == 1 else "s")


def joined(parts: Sequence[str]) -> str:
    """Return an enumeration: "a car, a star and a heart"."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def upper(words: str) -> str:
    """Return the words with a capital first letter."""
    return words[:1].upper() + words[1:]


def _others(
    answer: str, mentioned: Sequence[str], all_of: Sequence[str], rng: Random
) -> tuple[str, ...]:
    """Return three wrong answers, preferably from the text."""
    near = [v for v in dict.fromkeys(mentioned) if v != answer]
    rest = [v for v in all_of if v != answer and v not in near]
    rng.shuffle(near)
    rng.shuffle(rest)
    return tuple((near + rest)[:3])


def noun_of(thing: Scene) -> str:
    """Return the plain word for a thing."""
    return thing.get("shape", thing["kind"])


def describe(scene: Scene) -> str:
    """Return a sentence on all of a scene except the position in the picture."""
    words = [scene["size"]] if scene["size"] == "large" else []
    if scene.get("pattern", "plain") != "plain":
        words.append(scene["pattern"])
    words.append(scene["color"])
    words += [scene["body"]] if "body" in scene else []
    parts = [
        " ".join([scene[name], *([scene["ears"]] if noun == "ears" else []), noun])
        for name, noun in PART_NOUNS.items()
        if name in scene
    ]
    tail = f" with {joined(parts)}" if parts else ""
    head = article(" ".join([*words, noun_of(scene)]))
    return f"There is {head}{tail} {setting_phrase(scene['background'])}."


def scene_problem(about: Random, rng: Random) -> Problem:
    """Return a problem about one described thing."""
    scene = random_scene(about)
    text, noun = describe(scene), noun_of(scene)
    parts = [name for name in PART_NOUNS if name in scene]
    asked = rng.choice(["color", "background", "kind", *parts, *parts])
    if asked == "background":
        place = setting_phrase(scene["background"])
        places = [setting_phrase(b) for b in ATTRIBUTES["background"]]
        question, task = f"Where is the {noun}?", f"Say where the {noun} is."
        return Problem("place", text, question, task, place, _others(place, (), places, rng))
    if asked == "kind":
        return Problem(
            "thing", text, "What is it?", "Name the thing.", noun, _others(noun, (), NOUNS, rng)
        )
    part = noun if asked == "color" else PART_NOUNS[asked]
    are = "is" if part in (noun, "roof", "door") else "are"
    mentioned = [v for n, v in scene.items() if n.endswith("color")]
    answer = scene[asked]
    question = f"What color {are} the {part}?"
    task = rng.choice(
        (
            f"Name the color of the {part}.",
            f"Tell me which color the {part} {'has' if are == 'is' else 'have'}.",
        )
    )
    return Problem(
        "color", text, question, task, answer, _others(answer, mentioned, COLOR_NAMES, rng)
    )


def named_problem(about: Random, rng: Random, names: Sequence[str] = _NAMES) -> Problem:
    """Return a problem about an individual, which needs knowledge."""
    name = about.choice(names)
    parts = INDIVIDUALS[name]
    kind = parts["kind"]
    asked = rng.choice(["color", *(p for p in PART_NOUNS if p in parts)])
    whose = f"the {kind} {name}"
    if asked == "color":
        question, task = f"What color is {whose}?", f"Name the color of {whose}."
    else:
        part = PART_NOUNS[asked]
        question = f"What color {'is' if part in _SINGULAR else 'are'} the {part} of {whose}?"
        task = f"Name the color of the {part} of {whose}."
    mentioned = [v for n, v in parts.items() if n.endswith("color")]
    answer = parts[asked]
    return Problem("name", "", question, task, answer, _others(answer, mentioned, COLOR_NAMES, rng))


def tell_individual(name: str, rng: Random) -> str:
    """Return the facts about an individual, in random order."""
    parts = INDIVIDUALS[name]
    facts = []
    for asked in ["color", *(p for p in PART_NOUNS if p in parts)]:
        part = PART_NOUNS.get(asked)
        if part is None:
            facts.append(f"is {parts[asked]}")
        else:
            facts.append(
                f"has {'a ' if part in ('roof', 'door') else ''}{parts[asked]} {part}".replace(
                    "a orange", "an orange"
                )
            )
    rng.shuffle(facts)
    return f"The {parts['kind']} {name} {joined(facts)}."


def _shelf(rng: Random, count: int) -> list[tuple[str, str]]:
    """Return colors and nouns of things; nouns are distinct, colors may repeat."""
    colors = rng.sample(COLOR_NAMES, max(2, count - rng.randint(0, 2)))
    return [(rng.choice(colors), noun) for noun in rng.sample(NOUNS, count)]


def shelf_problem(about: Random, rng: Random) -> Problem:
    """Return a problem about things in a row."""
    things = _shelf(about, about.randint(3, 4))
    told = [f"{color} {noun}" for color, noun in things]
    text = f"The shelf has {joined([article(t) for t in told])}."
    colors, nouns = [c for c, _ in things], [n for _, n in things]
    form = rng.choice(("color_of", "place_of", "after", "before", "last"))
    if form == "color_of":
        color, noun = rng.choice(things)
        question, task = f"What color is the {noun}?", f"Name the color of the {noun}."
        return Problem(
            "shelf", text, question, task, color, _others(color, colors, COLOR_NAMES, rng)
        )
    if form in ("place_of", "last"):
        i = len(things) - 1 if form == "last" else rng.randrange(len(things))
        ordinal = "last" if form == "last" else ORDINALS[i]
        question, task = f"Which thing is the {ordinal}?", f"Name the {ordinal} thing."
        answer = nouns[i]
    else:
        step = 1 if form == "after" else -1
        i = rng.randrange(len(things) - 1) + (step < 0)
        question = f"Which thing comes {form} the {nouns[i]}?"
        task = f"Name the thing that comes {form} the {nouns[i]}."
        answer = nouns[i + step]
    return Problem("shelf", text, question, task, answer, _others(answer, nouns, NOUNS, rng))


def amount_problem(about: Random, rng: Random) -> Problem:
    """Return a problem about amounts: reading, adding, differences, most and fewest."""
    nouns = about.sample(NOUNS, about.randint(2, 3))
    counts = about.sample(range(1, 7), len(nouns))
    colors = about.sample(COLOR_NAMES, len(nouns))
    told = [
        plural(f"{color} {noun}", n) for noun, n, color in zip(nouns, counts, colors, strict=True)
    ]
    text = f"The box holds {joined(told)}."
    form = rng.choice(("read", "read", "color", "sum", "more", "most", "fewest"))
    i, j = rng.sample(range(len(nouns)), 2)
    if form == "color":
        question, task = f"What color are the {nouns[i]}s?", f"Name the color of the {nouns[i]}s."
        answer = colors[i]
        return Problem(
            "amount", text, question, task, answer, _others(answer, colors, COLOR_NAMES, rng)
        )
    if form in ("most", "fewest"):
        answer = nouns[counts.index(max(counts) if form == "most" else min(counts))] + "s"
        question = f"Of which things are there the {form}?"
        task = f"Name the things of which there are the {form}."
        plurals = [n + "s" for n in nouns]
        every = [n + "s" for n in NOUNS]
        return Problem("amount", text, question, task, answer, _others(answer, plurals, every, rng))
    if form == "read":
        question, task, number = (
            f"How many {nouns[i]}s are there?",
            f"Count the {nouns[i]}s.",
            counts[i],
        )
    elif form == "sum":
        question = f"How many {nouns[i]}s and {nouns[j]}s are there together?"
        task = f"Add the number of {nouns[i]}s and the number of {nouns[j]}s."
        number = counts[i] + counts[j]
    else:
        if counts[i] < counts[j]:
            i, j = j, i
        question = f"How many more {nouns[i]}s than {nouns[j]}s are there?"
        task = f"Take the number of {nouns[j]}s from the number of {nouns[i]}s."
        number = counts[i] - counts[j]
    answer = NUMBERS[number]
    told_numbers = [NUMBERS[n] for n in counts]
    return Problem(
        "amount", text, question, task, answer, _others(answer, told_numbers, NUMBERS[1:8], rng)
    )


PROBLEMS: dict[str, Ask] = {
    "scene": scene_problem,
    "named": named_problem,
    "shelf": shelf_problem,
    "amount": amount_problem,
}
