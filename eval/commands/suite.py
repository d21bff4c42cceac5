"""`python -m eval suite`: a whole benchmark, drawn where it is not yet, and scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from eval.config import SuiteConfig
from eval.protocols.drawing import DTYPES, Wanted, draw, file_digest, still_missing, wanted_pictures
from eval.protocols.folders import generated_pictures
from eval.protocols.prompts import fill
from eval.protocols.score import Picture, Scorer, Subject, pick_device, score_subjects
from eval.protocols.suites import SuiteSubject, read_suite
from eval.report.output import refuse_to_overwrite, write
from eval.report.page import result_page
from eval.report.result import markdown_table, score_rows
from loldu import load_concept, read_concept, unload_concept, verify_concept
from loldu.base.open import load_pipeline, weights_digest
from loldu.base.record import base_options
from loldu.errors import LoLDUError
from loldu.pictures.folder import list_images

SAMPLES, PROMPTS_JSON = "samples", "prompts.json"
"""How CustomConcept101's own evaluation wants a subject's pictures and prompts."""


def evaluate_suite(config: SuiteConfig) -> None:
    """Draw what is missing where concepts are given, score, and leave table and files.

    Raises:
        LoLDUError: If the suite, a concept, pictures or weights are not as they must be.
    """
    output = config.output
    refuse_to_overwrite([output.json, output.html], overwrite=output.overwrite)
    suite = choose(read_suite(config.suite), config.subjects)
    real = {subject.name: list_images(subject.real) for subject in suite}
    scorer = Scorer(config.models)  # what it lacks is told before hours of drawing
    if config.concepts is None:
        generated = {subject.name: find_pictures(config, subject) for subject in suite}
    else:
        generated = draw_suite(config, suite)
    subjects = [Subject(s.name, generated[s.name], real[s.name]) for s in suite]
    result = score_subjects(scorer, subjects, config.protocol, config.token)
    title = f"{config.suite.name}: {len(suite)} subjects"
    write(
        output,
        markdown_table(score_rows(result)),
        result.as_json(),
        lambda: result_page(title, result),
    )


def choose(suite: Sequence[SuiteSubject], names: Sequence[str]) -> list[SuiteSubject]:
    """The subjects asked for, or all.

    Raises:
        LoLDUError: If one is not in the suite.
    """
    known = {subject.name: subject for subject in suite}
    for name in names:
        if name not in known:
            raise LoLDUError(f"--subjects {name} is not in the suite; it has {', '.join(known)}.")
    return [known[name] for name in names] or list(suite)


def find_pictures(config: SuiteConfig, subject: SuiteSubject) -> list[Picture]:
    """The pictures of a subject that are there already, with their prompts.

    Raises:
        LoLDUError: If there are none, or nothing tells their prompts.
    """
    folder = config.pictures / subject.name
    if (folder / SAMPLES).is_dir() and (folder / PROMPTS_JSON).is_file():
        return generated_pictures(folder / SAMPLES, folder / PROMPTS_JSON)
    prompts = fill(subject.prompts, config.token, subject.class_name)
    pictures = generated_pictures(folder, numbered=prompts)
    if pictures[0].prompt is None:
        raise LoLDUError(
            f"Nothing tells the prompts of {folder}: name the pictures PROMPT-SEED.png, such as "
            "000-0.png, or write each one's prompt into a .txt beside it."
        )
    return pictures


def draw_suite(config: SuiteConfig, suite: Sequence[SuiteSubject]) -> dict[str, list[Picture]]:
    """Draw every subject's prompts from every seed with its concept, where that is not done.

    Raises:
        LoLDUError: If a concept is missing, or other pictures are in the way.
    """
    concepts = _find_concepts(config, suite)
    wanted = {
        subject.name: wanted_pictures(
            config.pictures / subject.name,
            fill(subject.prompts, config.token, subject.class_name),
            config.drawing.seeds,
        )
        for subject in suite
    }
    _draw_missing(config, concepts, wanted)
    return {name: [Picture(one.path, one.prompt) for one in own] for name, own in wanted.items()}


def _find_concepts(config: SuiteConfig, suite: Sequence[SuiteSubject]) -> dict[str, Path]:
    assert config.concepts is not None
    found = {}
    for name in (subject.name for subject in suite):
        places = [
            config.concepts / f"{name}.safetensors",
            config.concepts / name / "concept.safetensors",
        ]
        there = [place for place in places if place.is_file()]
        if not there:
            raise LoLDUError(
                f"--concepts {config.concepts} has no concept of {name}: neither {places[0].name} "
                f"nor {name}/{places[1].name}; train it, or leave it out with --subjects."
            )
        found[name] = there[0]
    return found


def _draw_missing(
    config: SuiteConfig, concepts: Mapping[str, Path], wanted: Mapping[str, list[Wanted]]
) -> None:
    """One base is loaded once; each concept goes in and out of it."""
    options = {
        name: base_options(read_concept(path), path, config.pretrained_model_name_or_path)
        for name, path in concepts.items()
    }
    first = next(iter(options.values()))
    for name, option in options.items():
        if option != first:
            raise LoLDUError(
                f"The concept of {name} was trained on another base than that of "
                f"{next(iter(options))}; a suite is drawn with one: leave it out with --subjects, "
                "or give --pretrained_model_name_or_path if both are the same."
            )
    pipeline = load_pipeline(
        first,
        torch_dtype=DTYPES[config.drawing.mixed_precision],
        device=torch.device(pick_device(config.models.device)),
    )
    base = weights_digest(pipeline)
    made = {name: {"base": base, "concept": file_digest(path)} for name, path in concepts.items()}
    missing = {
        name: still_missing(own, config.drawing, made[name], redraw=config.redraw, flag="--redraw")
        for name, own in wanted.items()
    }
    for name, own in missing.items():
        if own:
            verify_concept(pipeline, concepts[name])  # of all, before hours of drawing
    for number, (name, own) in enumerate(missing.items(), start=1):
        if own:
            load_concept(pipeline, concepts[name])
            label = f"drawing {name} ({number}/{len(missing)})"
            draw(pipeline, own, config.drawing, made[name], label=label)
            unload_concept(pipeline)
