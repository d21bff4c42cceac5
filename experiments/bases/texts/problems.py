"""Problems about the world, each with one right answer: scenes, individuals, shelves, amounts.

A problem is worded as a question or as an instruction. Its subject and its question are drawn from
two generators, so that one text can have several questions.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from experiments.bases.texts.descriptions import PART_OF, noun_of, with_article
from pocket.captions import setting_phrase
from pocket.world import ATTRIBUTES, COLORS, INDIVIDUALS, Scene, random_scene

COLOR_NAMES = tuple(COLORS)
NOUNS = ("toy", "car", "house", *ATTRIBUTES["shape"])
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"),
    *("eleven", "twelve"),
)
_NAMES = tuple(INDIVIDUALS)
ORDINALS = ("first", "second", "third", "fourth")


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


# Eight parameters: a problem, and where its wrong answers come from.
def _color_problem(
    kind: str,
    text: str,
    subject: str,
    answer: str,
    mentioned: Sequence[str],
    rng: Random,
    *,
    several: bool = False,
    task: str = "",
) -> Problem:
    """Return a problem about the color of a subject, such as "the roof"."""
    question = f"What color {'are' if several else 'is'} {subject}?"
    task = task or f"Name the color of {subject}."
    wrong = _others(answer, mentioned, COLOR_NAMES, rng)
    return Problem(kind, text, question, task, answer, wrong)


def describe(scene: Scene) -> str:
    """Return a sentence on all of a scene except the position in the picture."""
    words = [scene["size"]] if scene["size"] == "large" else []
    if scene.get("pattern", "plain") != "plain":
        words.append(scene["pattern"])
    words.append(scene["color"])
    words += [scene["body"]] if "body" in scene else []
    parts = [
        " ".join([scene[name], *([scene["ears"]] if noun == "ears" else []), noun])
        for name, (noun, _) in PART_OF.items()
        if name in scene
    ]
    tail = f" with {joined(parts)}" if parts else ""
    head = with_article(" ".join([*words, noun_of(scene)]))
    return f"There is {head}{tail} {setting_phrase(scene['background'])}."


def scene_problem(about: Random, rng: Random) -> Problem:
    """Return a problem about one described thing."""
    scene = random_scene(about)
    text, noun = describe(scene), noun_of(scene)
    parts = [name for name in PART_OF if name in scene]
    asked = rng.choice(["color", "background", "kind", *parts, *parts])
    if asked == "background":
        place = setting_phrase(scene["background"])
        places = [setting_phrase(b) for b in ATTRIBUTES["background"]]
        question, task = f"Where is the {noun}?", f"Say where the {noun} is."
        return Problem("place", text, question, task, place, _others(place, (), places, rng))
    if asked == "kind":
        wrong = _others(noun, (), NOUNS, rng)
        return Problem("thing", text, "What is it?", "Name the thing.", noun, wrong)
    part, several = PART_OF.get(asked, (noun, False))
    forms = (
        f"Name the color of the {part}.",
        f"Tell me which color the {part} {'have' if several else 'has'}.",
    )
    return _color_problem(
        "color",
        text,
        f"the {part}",
        scene[asked],
        [v for n, v in scene.items() if n.endswith("color")],
        task=rng.choice(forms),
        rng=rng,
        several=several,
    )


def named_problem(about: Random, rng: Random, names: Sequence[str] = _NAMES) -> Problem:
    """Return a problem about an individual, which needs knowledge."""
    name = about.choice(names)
    parts = INDIVIDUALS[name]
    asked = rng.choice(["color", *(p for p in PART_OF if p in parts)])
    part, several = PART_OF.get(asked, ("", False))
    whose = f"the {parts['kind']} {name}"
    subject = f"the {part} of {whose}" if part else whose
    mentioned = [v for n, v in parts.items() if n.endswith("color")]
    return _color_problem("name", "", subject, parts[asked], mentioned, rng, several=several)


def tell_individual(name: str, rng: Random) -> str:
    """Return the facts about an individual, in random order."""
    parts = INDIVIDUALS[name]
    facts = [f"is {parts['color']}"]
    for asked, (part, several) in PART_OF.items():
        if asked in parts:
            owned = f"{parts[asked]} {part}"
            facts.append(f"has {owned if several else with_article(owned)}")
    rng.shuffle(facts)
    return f"The {parts['kind']} {name} {joined(facts)}."


def _shelf(rng: Random, count: int) -> list[tuple[str, str]]:
    """Return colors and nouns of things; nouns are distinct, colors may repeat."""
    colors = rng.sample(COLOR_NAMES, max(2, count - rng.randint(0, 2)))
    return [(rng.choice(colors), noun) for noun in rng.sample(NOUNS, count)]


def shelf_problem(about: Random, rng: Random) -> Problem:
    """Return a problem about things in a row."""
    things = _shelf(about, about.randint(3, 4))
    text = f"The shelf has {joined([with_article(f'{color} {noun}') for color, noun in things])}."
    nouns = [noun for _, noun in things]
    form = rng.choice(("color_of", "place_of", "after", "before", "last"))
    if form == "color_of":
        color, noun = rng.choice(things)
        return _color_problem("shelf", text, f"the {noun}", color, [c for c, _ in things], rng)
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
    things = zip(nouns, counts, colors, strict=True)
    text = f"The box holds {joined([plural(f'{color} {noun}', n) for noun, n, color in things])}."
    plurals = [f"{noun}s" for noun in nouns]
    form = rng.choice(("read", "read", "color", "sum", "more", "most", "fewest"))
    i, j = rng.sample(range(len(nouns)), 2)
    if form == "color":
        subject = f"the {plurals[i]}"
        return _color_problem("amount", text, subject, colors[i], colors, rng, several=True)
    if form in ("most", "fewest"):
        answer = plurals[counts.index(max(counts) if form == "most" else min(counts))]
        question = f"Of which things are there the {form}?"
        task = f"Name the things of which there are the {form}."
        wrong = _others(answer, plurals, [f"{noun}s" for noun in NOUNS], rng)
        return Problem("amount", text, question, task, answer, wrong)
    if form == "more" and counts[i] < counts[j]:
        i, j = j, i
    one, other = plurals[i], plurals[j]
    question, task, number = {
        "read": (f"How many {one} are there?", f"Count the {one}.", counts[i]),
        "sum": (
            f"How many {one} and {other} are there together?",
            f"Add the number of {one} and the number of {other}.",
            counts[i] + counts[j],
        ),
        "more": (
            f"How many more {one} than {other} are there?",
            f"Take the number of {other} from the number of {one}.",
            counts[i] - counts[j],
        ),
    }[form]
    answer = NUMBERS[number]
    wrong = _others(answer, [NUMBERS[n] for n in counts], NUMBERS[1:8], rng)
    return Problem("amount", text, question, task, answer, wrong)


PROBLEMS: dict[str, Ask] = {
    "scene": scene_problem,
    "named": named_problem,
    "shelf": shelf_problem,
    "amount": amount_problem,
}
