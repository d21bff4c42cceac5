"""``python -m experiments.pocket_concepts``: train, judge, and keep one JSON a run.

A run whose result is there is not made again; ``--table`` prints what has been measured.
"""

import json
import logging
import platform
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from experiments.pocket_concepts.judge import LOOKS, Drawn, Judge
from experiments.pocket_concepts.report import by_concept, by_method, comparison
from loldu import load_concept
from loldu.base.open import load_pipeline, weights_digest
from loldu.files import save_png
from loldu.provenance import write_record
from pocket.world import CONCEPTS
from trainer.options.preset import parse
from trainer.train_dreambooth_loldu import main as train

BASE = "pocket/base"
RESULTS = Path(__file__).parent / "results"
WORK = Path("runs/pocket_concepts")


@dataclass(frozen=True)
class Options:
    """Measure one way of training over concepts and seeds.

    Attributes:
        name: Of this way of training; names its results.
        flags: Trainer flags in addition to the pocket preset, in one string.
        concepts: Which of `datasets/concepts` (all by default), tuning_toy or tuning_car.
        seeds: Training seeds.
        results: Where results are kept.
        table: Only print the tables of what is there.
        sheet: Only draw this picture of what is there.
    """

    name: str = "loldu"
    flags: str = ""
    concepts: tuple[str, ...] = tuple(CONCEPTS)
    seeds: tuple[int, ...] = (0, 1, 2)
    results: Path = RESULTS
    table: bool = False
    sheet: Path | None = None


def measure_base(judge: Judge) -> dict[str, object]:
    """What the base draws for the same prompts, and how alike true pictures are."""
    drawn = judge.draw(load_pipeline(BASE))
    drawn.save(WORK / "base" / f"{judge.name}.npz")
    return {"concept": judge.name, "scores": judge.measure(drawn), "real": judge.real()}


def run_one(options: Options, seed: int, judge: Judge) -> dict[str, object]:
    """Train one concept once and measure it.

    What was trained and drawn stays in `WORK`: a run that was stopped goes on, and new encoders
    judge what is there.
    """
    work = WORK / options.name / f"{judge.name}-{seed}"
    flags = shlex.split(options.flags)
    pipeline = load_pipeline(BASE)
    base = weights_digest(pipeline)
    made_with = {"flags": flags, "base": base}
    stamp, pictures = work / "made_with.json", work / "drawn.npz"
    if not stamp.exists() or json.loads(stamp.read_text()) != made_with:
        _train(judge, work, seed, flags)
        concept = work / "concept.safetensors"
        if concept.exists():
            load_concept(pipeline, concept)
        else:
            pipeline.load_lora_weights(str(work), weight_name="pytorch_lora_weights.safetensors")
        judge.draw(pipeline).save(pictures)
        write_record(stamp, made_with)
    summary = json.loads((work / "summary.json").read_text())
    return {
        "concept": judge.name,
        "seed": seed,
        "flags": flags,
        "train_seconds": summary["train_seconds"],
        "parameters": summary["trainable_parameters"],
        "base": base,
        "torch": torch.__version__,
        "machine": platform.platform(),
        "scores": judge.measure(Drawn.load(pictures)),
    }


def _train(judge: Judge, work: Path, seed: int, flags: list[str]) -> None:
    argv = ["--preset", "pocket", "--instance_data_dir", str(judge.folder)]
    argv += ["--instance_prompt", f"a photo of a sks {judge.concept['kind']}"]
    argv += ["--output_dir", str(work), "--class_data_dir", str(WORK / "class")]
    train(parse([*argv, "--seed", str(seed), "--overwrite", *flags]))


def main(options: Options) -> None:
    """Run what is missing, then print the tables.

    Raises:
        SystemExit: A concept is unknown, or there is nothing to show.
    """
    logging.getLogger("trainer").setLevel(logging.WARNING)
    if unknown := sorted(set(options.concepts) - set(LOOKS)):
        sys.exit(f"--concepts {unknown[0]} is not known: choose from {', '.join(LOOKS)}.")
    if (options.table or options.sheet) and not (options.results / "base").is_dir():
        sys.exit(f"--results {options.results} has no results: run without --table and --sheet.")
    if options.sheet:
        try:
            picture = comparison(options.results, WORK)
        except FileNotFoundError as error:
            sys.exit(f"{error.filename} is missing: --sheet shows what was drawn on this machine.")
        save_png(picture, options.sheet)
        return
    for concept in () if options.table else options.concepts:
        judge = Judge(concept)
        base_file = options.results / "base" / f"{concept}.json"
        if not base_file.exists():
            write_record(base_file, measure_base(judge))
        for seed in options.seeds:
            file = options.results / options.name / f"{concept}-{seed}.json"
            if not file.exists():
                write_record(file, run_one(options, seed, judge))
            elif (was := json.loads(file.read_text())["flags"]) != shlex.split(options.flags):
                sys.exit(f"{file} was made with {shlex.join(was)}; choose another --name.")
    print(by_method(options.results), by_concept(options.results), sep="\n\n")  # noqa: T201


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m experiments.pocket_concepts"))
