"""``python -m experiments.pocket_curves``: train, measure on the way, and keep one JSON a run.

A run whose result is there is not made again, so that the command can be stopped and started, and
several can share the work by `--variants`.
"""

import json
import logging
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from experiments.pocket_concepts.judge import TUNING, Judge
from experiments.pocket_curves.report import differences, picture, table
from experiments.pocket_curves.scorer import METRICS, CurveScorer
from experiments.pocket_curves.variants import VARIANTS, WORD
from experiments.renaming import copy_renamed
from loldu.base.open import load_pipeline, weights_digest
from loldu.files import save_png
from loldu.provenance import provenance, write_record
from pocket.world import CONCEPTS
from trainer.options.preset import parse
from trainer.train_dreambooth_loldu import main as train
from trainer.training.scores import read_scores

FOLDER = Path(__file__).parent
RESULTS, TUNING_RESULTS = FOLDER / "results", FOLDER / "tuning"
WORK = Path("runs/pocket_curves")
FOUR = ("striped_cat", "dotted_rabbit", "beetle_car", "candy_house")
YARDSTICK = "lora-r32"
# What every way starts from, whatever has become of the preset.
PLAIN = ["--learning_rate", "2e-2", "--no_normalize_directions", "--no_train_text_encoder"]
# Every 75 steps, two pictures of each of 20 prompts in 12 denoising steps: half of a run's time.
MEASURING = ["--validation_steps", "75", "--validation_images", "2", "--num_inference_steps", "12"]


@dataclass(frozen=True)
class Options:
    """Measure ways of training over concepts and seeds.

    Attributes:
        variants: Which of `variants.py`.
        concepts: Which of `datasets/concepts`; those for tuning with --tune.
        seeds: Training seeds; 0 alone with --tune.
        flags: Trainer flags beside the variant's, in one string; with --tune only.
        tune: Try flags on two looks that no result is about, and keep the results apart.
        table: Only print the tables of what is there.
        picture: Only draw this picture of what is there.
    """

    variants: tuple[str, ...] = tuple(VARIANTS)
    concepts: tuple[str, ...] | None = None
    seeds: tuple[int, ...] | None = None
    flags: str = ""
    tune: bool = False
    table: bool = False
    picture: Path | None = None


def run_one(name: str, flags: list[str], seed: int, judge: Judge) -> dict[str, Any]:
    """Train one concept in one way, and what every point of it was measured at."""
    work = WORK / name / f"{judge.name}-{seed}"
    scorer, kind = CurveScorer(judge), judge.concept["kind"]
    word = WORD in flags
    token = WORD if word else "sks"
    folder = work.with_name(f"{work.name}-pictures") if word else judge.folder
    if word:
        copy_renamed(judge.folder, folder, "sks", token)
    argv = [
        "--preset",
        "pocket",
        *PLAIN,
        "--seed",
        str(seed),
        "--overwrite",
        "--output_dir",
        str(work),
    ]
    argv += ["--instance_data_dir", str(folder)]
    argv += ["--instance_prompt", f"a photo of a {token} {kind}"]
    argv += ["--class_data_dir", str(WORK / "class"), "--checkpointing_steps", "0"]
    argv += ["--lora_file", "no", "--no_sample_at_end"]
    argv += ["--validation_prompt", *scorer.prompts(token), "--validation_scores", *MEASURING]
    argv += ["--drift_prompt", *scorer.drift_prompts()]
    argv += ["--token", token, *(("--initializer_token", kind) if word else ()), *flags]
    train(parse(argv), scorer)
    summary = json.loads((work / "summary.json").read_text())
    points = read_scores(work)
    for made in {work, folder} - {judge.folder}:
        shutil.rmtree(made)
    return {
        "variant": name,
        "concept": judge.name,
        "seed": seed,
        "flags": flags,
        "parameters": summary["trainable_parameters"],
        "base": weights_digest(load_pipeline("pocket/base")),
        **provenance("experiments.pocket_curves", sys.argv[1:], ("torch", "diffusers", "peft")),
        "points": [{**point, **{key: round(point[key], 4) for key in METRICS}} for point in points],
    }


def main(options: Options) -> None:
    """Run what is missing, then print the tables.

    Raises:
        SystemExit: A name is unknown, or there is nothing to show.
    """
    logging.getLogger("trainer").setLevel(logging.WARNING)
    results = TUNING_RESULTS if options.tune else RESULTS
    known = TUNING if options.tune else CONCEPTS
    concepts = options.concepts or tuple(TUNING if options.tune else FOUR)
    for flag, given, names in (
        ("variants", options.variants, VARIANTS),
        ("concepts", concepts, known),
    ):
        if unknown := sorted(set(given) - {*names}):
            sys.exit(f"--{flag} {unknown[0]} is not known: choose from {', '.join(names)}.")
    if options.flags and not options.tune:
        sys.exit("--flags is for --tune; a way of training to compare is a line of variants.py.")
    if not (options.table or options.picture):
        for concept in concepts:
            judge = Judge(concept)
            for seed in options.seeds or ((0,) if options.tune else (0, 1, 2)):
                for variant in options.variants:
                    _measure(results, variant, options.flags, seed, judge)
    if not any(results.glob("*/*.json")):
        sys.exit(f"There are no results in {results}: run without --table and --picture.")
    if options.picture:
        save_png(picture(results), options.picture)
    for made in (table(results), differences(results, YARDSTICK)):
        print(f"{made}\n")  # noqa: T201


def _measure(results: Path, variant: str, more: str, seed: int, judge: Judge) -> None:
    """Make a result that is not there."""
    flags = shlex.split(f"{VARIANTS[variant].flags} {more}")
    name = variant + re.sub(r"[^\w.-]+", "_", more.replace("--", " ").rstrip()).replace(" ", "_")
    file = results / name / f"{judge.name}-{seed}.json"
    if not file.exists():
        write_record(file, run_one(name, flags, seed, judge))
    elif (was := json.loads(file.read_text())["flags"]) != flags:
        sys.exit(f"{file} was made with {shlex.join(was)}; remove it, or name the variant anew.")


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m experiments.pocket_curves"))
