"""``python -m experiments.pocket_concepts``: train, judge, and keep one JSON a run.

A run whose result is there is not made again; ``--table`` prints what has been measured.
"""

import json
import logging
import platform
import shlex
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import torch
import tyro

from experiments.pocket_concepts.judge import Judge
from loldu import load_concept
from pocket.world import CONCEPTS
from trainer.base import fingerprint, load_pipeline
from trainer.preset import parse

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Options:
    """Measure one way of training over concepts and seeds.

    Attributes:
        name: Of this way of training; names its results.
        flags: Trainer flags in addition to the pocket preset, in one string.
        concepts: Which of `datasets/concepts`; all by default.
        seeds: Training seeds.
        results: Where results are kept.
        table: Only print the table of what is there.
    """

    name: str = "loldu"
    flags: str = ""
    concepts: tuple[str, ...] = tuple(CONCEPTS)
    seeds: tuple[int, ...] = (0, 1, 2)
    results: Path = RESULTS
    table: bool = False


def run_one(name: str, flags: list[str], seed: int, judge: Judge) -> dict[str, object]:
    """Train one concept once and measure it."""
    from trainer.train_dreambooth_loldu import main as train

    folder = Path("datasets/concepts") / name
    kind = CONCEPTS[name]["kind"]
    with tempfile.TemporaryDirectory() as output:
        argv = ["--preset", "pocket", "--instance_data_dir", str(folder)]
        argv += ["--instance_prompt", f"a photo of a sks {kind}", "--output_dir", output]
        argv += ["--seed", str(seed), "--overwrite", *flags]
        started = time.perf_counter()
        train(parse(argv))
        seconds = time.perf_counter() - started
        summary = json.loads((Path(output) / "summary.json").read_text())
        pipeline = load_pipeline("pocket/base")
        lora = Path(output) / "pytorch_lora_weights.safetensors"
        if lora.exists():
            pipeline.load_lora_weights(output, weight_name=lora.name)
        else:
            load_concept(pipeline, Path(output) / "concept.safetensors")
        measured = judge.measure(judge.draw(pipeline))
    return {
        "concept": name,
        "seed": seed,
        "flags": flags,
        "seconds": round(seconds, 1),
        "parameters": summary["trainable_parameters"],
        "base": fingerprint(pipeline),
        "torch": torch.__version__,
        "machine": platform.platform(),
        "scores": {key: round(value, 4) for key, value in measured.items()},
    }


def main(options: Options) -> None:
    """Run what is missing, then print the table."""
    logging.getLogger("trainer").setLevel(logging.WARNING)
    for concept in () if options.table else options.concepts:
        judge = Judge(concept, Path("datasets/concepts"))
        base_file = options.results / "base" / f"{concept}.json"
        if not base_file.exists():
            drawn = judge.draw(load_pipeline("pocket/base"))
            scores = {key: round(value, 4) for key, value in judge.measure(drawn).items()}
            _write(base_file, {"concept": concept, "scores": scores, "real": judge.real()})
        for seed in options.seeds:
            file = options.results / options.name / f"{concept}-{seed}.json"
            flags = shlex.split(options.flags)
            if not file.exists():
                _write(file, run_one(concept, flags, seed, judge))
            elif (was := json.loads(file.read_text())["flags"]) != flags:
                sys.exit(f"{file} was made with {shlex.join(was)}; choose another --name.")
    print(table(options.results))  # noqa: T201


def _write(file: Path, record: dict[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(record, indent=2) + "\n")
    partial.replace(file)


def table(results: Path) -> str:
    """Markdown: one row a way of training, mean over concepts and seeds (spread over runs)."""
    base = {p.stem: json.loads(p.read_text()) for p in sorted((results / "base").glob("*.json"))}
    columns = ("dino", "clip_i", "clip_t", "concept", "background", "others", "leak")
    lines = [
        "| method | parameters | runs | gap closed dino / clip_i | " + " | ".join(columns) + " |"
    ]
    lines.append("|---" * (len(columns) + 4) + "|")
    shared = {c: mean(b["scores"][c] for b in base.values()) for c in columns}
    lines.append("| base | 0 | | 0 / 0 | " + " | ".join(f"{shared[c]:.3f}" for c in columns) + " |")
    for folder in sorted(p for p in results.iterdir() if p.is_dir() and p.name != "base"):
        runs = [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
        closed = {
            k: mean(_closed(r, base[r["concept"]], k) for r in runs) for k in ("dino", "clip_i")
        }
        cells = []
        for c in columns:
            values = [r["scores"][c] for r in runs]
            cells.append(f"{mean(values):.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}")
        parameters = f"{runs[0]['parameters']:,}"
        gap = f"{closed['dino']:.2f} / {closed['clip_i']:.2f}"
        lines.append(
            f"| {folder.name} | {parameters} | {len(runs)} | {gap} | " + " | ".join(cells) + " |"
        )
    return "\n".join(lines)


def _closed(run: dict, base: dict, metric: str) -> float:
    start, goal = base["scores"][metric], base["real"][metric]
    return (run["scores"][metric] - start) / (goal - start)


if __name__ == "__main__":
    main(tyro.cli(Options, prog="python -m experiments.pocket_concepts"))
