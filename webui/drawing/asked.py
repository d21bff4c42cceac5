"""The drawing that the controls of Play ask for."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from loldu.errors import LoLDUError
from webui.drawing.facts import Facts, facts_of, filled
from webui.drawing.model import Use
from webui.drawing.settings import MAX_CONCEPTS, MAX_PROMPT, SEEDS
from webui.drawing.studio import Task
from webui.drawing.words import for_one, lacking
from webui.library.collection import Library

TOGETHER, EACH = "All in every picture", "One in each picture"
STRENGTHS = tuple(f"strength_{place}" for place in range(1, MAX_CONCEPTS + 1))
ASKED = ("concepts", "way", *STRENGTHS, "step", "prompt", "negative_prompt", "seed", "count")
ASKED += ("steps", "guidance", "placed", "suggested", "drawn")
"""Controls whose values every handler gets, by name."""


@dataclass(frozen=True)
class Drawn:
    """Settings of the pictures that a page shows, without the strengths and the step."""

    task: Task
    chosen: list[str]
    way: str


def chosen_of(asked: Mapping[str, Any]) -> list[str]:
    """Return the ids of the chosen concepts."""
    chosen: list[str] = asked["concepts"] or []
    return [*dict.fromkeys(chosen)][:MAX_CONCEPTS]


def is_each(way: str, chosen: Sequence[str]) -> bool:
    """Return whether each picture shows one concept, in turn."""
    return way == EACH and len(chosen) > 1


def strengths_of(asked: Mapping[str, Any]) -> list[float | int]:
    """Return the values of all strengths."""
    return [asked[name] for name in STRENGTHS]


def known_facts(library: Library, owner: str, chosen: Sequence[str]) -> list[Facts]:
    """Return the facts of concepts.

    Raises:
        LoLDUError: If one is gone or damaged.
    """
    return [facts_of(library.get(each, owner)) for each in chosen]


def readable_facts(library: Library, owner: str, chosen: Sequence[str]) -> list[Facts]:
    """Return the facts of those concepts that can be read."""
    facts: list[Facts] = []
    for each in chosen:
        with suppress(LoLDUError):
            facts += known_facts(library, owner, [each])
    return facts


def uses_of(library: Library, owner: str, asked: Mapping[str, Any]) -> list[Use]:
    """Return the chosen concepts at their strengths, the first one at the chosen step.

    Raises:
        LoLDUError: If a concept or the step is gone.
    """
    entries, step = [library.get(each, owner) for each in chosen_of(asked)], asked["step"]
    if entries and step is not None:
        steps = library.steps(entries[0])
        if step not in steps:
            raise LoLDUError(f"Step {step} of {entries[0].name} is gone: choose another step.")
        entries[0] = steps[step]
    return [Use(*each) for each in zip(entries, strengths_of(asked), strict=False)]


def ask(library: Library, owner: str, asked: Mapping[str, Any]) -> tuple[Drawn, list[Use]]:
    """Return what the controls ask for, and its concepts.

    Raises:
        LoLDUError: If a setting is missing or cannot be used, or a concept is gone.
    """
    prompt, negative_prompt = asked["prompt"] or "", asked["negative_prompt"] or ""
    seed, steps, guidance = asked["seed"], asked["steps"], asked["guidance"]
    if not prompt.strip():
        raise LoLDUError("The prompt is empty: say what should be in the picture.")
    if seed is None or steps is None or guidance is None:
        raise LoLDUError("Seed, steps and guidance each need a number.")
    chosen, way = chosen_of(asked), asked["way"]
    facts, uses = known_facts(library, owner, chosen), uses_of(library, owner, asked)
    seeds = [(seed + index) % (SEEDS[1] + 1) for index in range(asked["count"])]
    prompts, seeds = _pictures(prompt, seeds, facts, each=is_each(way, chosen))
    if max(map(len, (*prompts, negative_prompt))) > MAX_PROMPT:
        raise LoLDUError(f"The prompt has more than {MAX_PROMPT} characters: shorten it.")
    return Drawn(Task(prompts, seeds, negative_prompt, steps, float(guidance)), chosen, way), uses


def ask_grid(library: Library, owner: str, asked: Mapping[str, Any]) -> tuple[Task, list[Use]]:
    """Return the first picture that the controls ask for, and its concepts.

    Raises:
        LoLDUError: If `ask` raises it, or the first concept does not act in this picture.
    """
    drawn, uses = ask(library, owner, asked)
    if not uses:
        raise LoLDUError("The grid shows a concept: choose one.")
    first, one = drawn.task.part(slice(1)), known_facts(library, owner, drawn.chosen[:1])
    if lacking(first.prompts[0], one, each=False):
        raise LoLDUError(
            f"“{one[0].words}” is not in your prompt, so the grid would be the base's: add it."
        )
    return first, uses[:1] if is_each(drawn.way, drawn.chosen) else uses


def rows_of(drawn: Drawn, uses: Sequence[Use]) -> list[Sequence[Use]]:
    """Return the concepts of each picture."""
    if not is_each(drawn.way, drawn.chosen):
        return [uses] * len(drawn.task.seeds)
    return [[uses[place % len(uses)]] for place in range(len(drawn.task.seeds))]


def _pictures(
    prompt: str, seeds: list[int], facts: list[Facts], *, each: bool
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the prompt and seed of every picture; concepts share the seeds."""
    if not each:
        return (filled(prompt, facts),) * len(seeds), tuple(seeds)
    prompts = [filled(for_one(prompt, one, facts), [one]) for one in facts]
    return tuple(prompts * len(seeds)), tuple(seed for seed in seeds for _ in facts)
