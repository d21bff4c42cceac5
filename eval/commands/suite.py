"""`python -m eval suite`: score a benchmark; generate its missing pictures first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from eval.config import SuiteConfig
from eval.protocols.drawing import DTYPES, draw, file_digest, missing_pictures
from eval.protocols.folders import generated_pictures
from eval.protocols.prompts import PlannedPicture, fill, plan_pictures
from eval.protocols.score import FeatureReader, Picture, Subject, pick_device, score_subjects
from eval.protocols.suite_layouts import SuiteSubject, Together, read_suite, read_together
from eval.protocols.together import score_together
from eval.report.limits import check_limits
from eval.report.output import refuse_to_overwrite, write
from eval.report.page import result_page
from eval.report.tables import markdown_table, result_rows
from eval.report.verdict import verdict_json
from loldu import load_concept, read_concept, unload_concept, verify_concept
from loldu.base.open import load_pipeline, weights_digest
from loldu.base.record import base_options
from loldu.errors import LoLDUError
from loldu.pictures.folder import list_images

SAMPLES, PROMPTS_JSON = "samples", "prompts.json"
"""Folder and file of a subject in the layout of CustomConcept101's own evaluation."""


def evaluate_suite(config: SuiteConfig) -> str:
    """Score a suite; print the table and write the files. `--concepts` generates pictures first.

    Returns:
        A sentence about scores that failed their limits, or "".

    Raises:
        LoLDUError: If the suite, a concept, pictures or weights are missing or invalid.
    """
    output = config.output
    refuse_to_overwrite([output.json, output.html], overwrite=output.overwrite)
    every = read_suite(config.suite)
    suite = choose(every, config.subjects)
    groups = _groups(config, read_together(config.suite, every), suite)
    real = {subject.name: list_images(subject.real) for subject in suite}
    reader = FeatureReader(config.models)  # reports missing weights before hours of drawing
    alone = [subject for subject in suite if subject.prompts]
    if config.concepts is None:
        generated = {subject.name: find_pictures(config, subject) for subject in alone}
    else:
        generated = draw_suite(config, alone)
    others = list_images(config.look_alikes) if config.look_alikes else []
    subjects = [
        Subject(s.name, generated[s.name], real[s.name], (), others, s.class_name) for s in alone
    ]
    protocol, token = config.protocol, config.token
    results = [score_subjects(reader, subjects, protocol, token)] if subjects else []
    if groups:
        results.append(score_together(reader, groups, protocol, token))
    if not results:
        raise LoLDUError(
            f"--subjects {' '.join(config.subjects)} leaves nothing to score: they have no prompts "
            "of their own, and no [[together]] has only these; choose more."
        )
    means = {name: mean for result in reversed(results) for name, mean in result.means.items()}
    checked, failed = check_limits(config.limits.fail_under, means)
    content = results[0].as_json() | {
        "verdict": verdict_json([answer for result in results for answer in result.verdict]),
        "limits": checked,
        **({"together": results[1].as_json()} if len(results) > 1 else {}),
    }
    write(
        output,
        "\n\n".join(markdown_table(result_rows(result)) for result in results),
        content,
        lambda: result_page(f"{config.suite.name}: {len(suite)} subjects", *results),
    )
    return failed


def _groups(
    config: SuiteConfig, groups: Sequence[Together], suite: Sequence[SuiteSubject]
) -> dict[str, list[Subject]]:
    """Return the groups whose subjects are all chosen, with their pictures.

    Raises:
        LoLDUError: If pictures are missing: this command draws single subjects.
    """
    chosen = {subject.name for subject in suite}
    found: dict[str, list[Subject]] = {}
    for group in groups:
        if not chosen.issuperset(group.names):
            continue
        folder = config.pictures / group.name
        if not folder.is_dir():
            raise LoLDUError(
                f"There is no folder {folder}: this command draws one subject a picture; draw the "
                f"pictures of {' and '.join(group.names)} with Play or a script of your own."
            )
        pictures = find_pictures(config, SuiteSubject(group.name, "", folder, group.prompts))
        found[group.name] = [
            Subject(s.name, pictures, list_images(s.real), class_name=s.class_name)
            for s in group.subjects
        ]
    return found


def choose(suite: Sequence[SuiteSubject], names: Sequence[str]) -> list[SuiteSubject]:
    """Return the subjects of these names, or all if no name is given.

    Raises:
        LoLDUError: If a name is not in the suite.
    """
    known = {subject.name: subject for subject in suite}
    for name in names:
        if name not in known:
            raise LoLDUError(f"--subjects {name} is not in the suite; it has {', '.join(known)}.")
    return [known[name] for name in names] or list(suite)


def find_pictures(config: SuiteConfig, subject: SuiteSubject) -> list[Picture]:
    """Return the existing pictures of a subject with their prompts.

    Raises:
        LoLDUError: If there are no pictures, or their prompts are unknown.
    """
    folder = config.pictures / subject.name
    if (folder / SAMPLES).is_dir() and (folder / PROMPTS_JSON).is_file():
        return generated_pictures(folder / SAMPLES, folder / PROMPTS_JSON)
    prompts = fill(subject.prompts, config.token, subject.class_name)
    pictures = generated_pictures(folder, numbered=prompts)
    if pictures[0].prompt is None:
        raise LoLDUError(
            f"The prompts of {folder} are unknown: name the pictures PROMPT-SEED.png, such as "
            "000-0.png, or write each prompt to a .txt file beside its picture."
        )
    return pictures


def draw_suite(config: SuiteConfig, suite: Sequence[SuiteSubject]) -> dict[str, list[Picture]]:
    """Generate the missing pictures of every subject, and return all pictures by subject.

    Raises:
        LoLDUError: If a concept is missing, or a picture exists with other settings.
    """
    concepts = _find_concepts(config, suite)
    planned = {
        subject.name: plan_pictures(
            config.pictures / subject.name,
            fill(subject.prompts, config.token, subject.class_name),
            config.drawing.seeds,
        )
        for subject in suite
    }
    _draw_missing(config, concepts, planned)
    return {name: [Picture(one.path, one.prompt) for one in own] for name, own in planned.items()}


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
                f"nor {name}/{places[1].name}; train it, or choose others with --subjects."
            )
        found[name] = there[0]
    return found


def _draw_missing(
    config: SuiteConfig, concepts: Mapping[str, Path], planned: Mapping[str, list[PlannedPicture]]
) -> None:
    """Load the base once, and generate each subject's missing pictures with its concept."""
    options = {
        name: base_options(
            read_concept(path),
            path,
            config.pretrained_model_name_or_path,
            trusted=config.trust_concept,
        )
        for name, path in concepts.items()
    }
    first = next(iter(options.values()))
    for name, option in options.items():
        if option != first:
            raise LoLDUError(
                f"The concepts of {name} and {next(iter(options))} were trained on different "
                "bases, but a suite uses one: choose subjects with --subjects, or give "
                "--pretrained_model_name_or_path if both bases are the same model."
            )
    pipeline = load_pipeline(
        first,
        torch_dtype=DTYPES[config.drawing.mixed_precision],
        device=torch.device(pick_device(config.models.device)),
    )
    base = weights_digest(pipeline)
    origins = {
        name: {"base": base, "concept": file_digest(path)} for name, path in concepts.items()
    }
    missing = {
        name: missing_pictures(
            own, config.drawing, origins[name], redraw=config.redraw, flag="--redraw"
        )
        for name, own in planned.items()
    }
    for name, own in missing.items():
        if own:
            verify_concept(pipeline, concepts[name])  # all of them, before hours of drawing
    for number, (name, own) in enumerate(missing.items(), start=1):
        if own:
            load_concept(pipeline, concepts[name], route=not config.drawing.always_on)
            label = f"drawing {name} ({number}/{len(missing)})"
            draw(pipeline, own, config.drawing, origins[name], label=label)
            unload_concept(pipeline)
