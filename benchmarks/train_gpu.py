"""Steps a second and memory: this trainer, diffusers' train_dreambooth_lora.py, and the floor.

``python -m benchmarks.train_gpu --diffusers_script train_dreambooth_lora.py``. Every command is run
as a person runs it, in a process of its own, on the same base (Stable Diffusion v1.5's shape,
random weights) and the same pictures; speed is read off its progress bar, memory off PyTorch in its
process. diffusers' script is run unmodified with its own defaults; it lies in `examples/dreambooth`
of diffusers' repository, not in its wheel. The floor is `benchmarks.floor`, on a GPU compiled and
captured as one CUDA graph.
"""

import hashlib
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import tomli_w
import torch
import tyro
from rich.console import Console
from rich.table import Table

from benchmarks import kernels, train_step
from benchmarks.device import named
from benchmarks.spread import ratio, spread
from benchmarks.stable_diffusion import SIZES, save_random_base, save_random_pictures
from benchmarks.watched import Command, Watched, watch
from loldu.provenance import provenance, write_record

RESULTS = Path(__file__).parent / "results"
DTYPES: dict[str, train_step.Dtype] = {
    precision: dtype for dtype, precision in train_step.PRECISIONS.items()
}
PROMPT = "a photo of sks dog"
PICTURES, CONCEPTS = "pictures", "concepts.toml"
FLOOR, TRAINER, AT_ONCE, DIFFUSERS = "floor", "trainer", "concepts at once", "diffusers"
STEPS_OF_A_CONCEPT = 1000


@dataclass(frozen=True)
class Options:
    """Run this trainer, diffusers' and the floor in turns, on a GPU where there is one."""

    # The base, and the side of the pictures: sd15 is v1.5's, 512 pixels; smallest is for a CPU.
    size: Literal["sd15", "smallest"] = "sd15"
    # diffusers' train_dreambooth_lora.py; without it there is nothing to compare with.
    diffusers_script: Path | None = None
    # Flags of further runs of the trainer, without their dashes, a run each: compile "rank=full".
    also: tuple[str, ...] = ()
    # Flags of diffusers' script, without their dashes: pre_compute_text_embeddings rank=32.
    diffusers_flags: tuple[str, ...] = ()
    # Concepts that are trained at once, beside one run of the trainer after another; 0 for none.
    concepts: int = 8
    # Precision of every command; fp16 on a GPU and no on a CPU unless given.
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    # Directions a layer of LoLDU; the paper's is 32.
    rank: int = 32
    # Steps that are timed, after those that warm up; both a multiple of 10, for the trainer waits
    # for the GPU after every tenth.
    steps: int = 100
    warmup: int = 20
    # Times every command is run; medians are reported.
    repetitions: int = 3
    # Of the random weights and pictures, and of the training.
    seed: int = 0
    # Also profile this many of the trainer's steps: kernels by time, launches, waits of the host.
    profile: int = 0
    # Where the result is written, over the last one.
    output: Path = RESULTS / "train_gpu.json"


def commands(options: Options, device: str, folder: Path) -> dict[str, Command]:
    """Return what is run, by name; the base and the pictures are in the folder."""
    size, precision = SIZES[options.size], precision_of(options, device)
    taken = ["--max_train_steps", str(options.warmup + options.steps)]
    base = ["--pretrained_model_name_or_path", str(folder / "base")]
    common = [
        *(*base, *taken, "--resolution", str(size.resolution), "--mixed_precision", precision),
        *("--train_batch_size", "1", "--seed", str(options.seed)),
    ]
    pictures = ["--instance_data_dir", str(folder / PICTURES), "--instance_prompt", PROMPT]
    output = ["--output_dir", str(folder / "run"), "--overwrite"]
    many = [*common, *output, "--rank", str(options.rank), "--checkpointing_steps", "0"]
    ours = [*many, *pictures]
    dtype = DTYPES[precision]
    graph = ["--compile", "--capture"] if device == "cuda" else []
    floor = [*base, *taken, "--device", device, "--dtype", dtype, *graph]
    what = "the frozen U-Net's forward and backward" + (", compiled and captured" if graph else "")
    made = {
        FLOOR: Command(what, "benchmarks.floor", floor, "floor"),
        TRAINER: Command("this trainer", "trainer", ours, "training"),
    }
    for flags in options.also:
        what = f"this trainer with {flags}"
        more = [f"--{flag}" for flag in flags.split()]
        made[f"trainer {flags}"] = Command(what, "trainer", [*ours, *more], "training")
    if options.concepts:
        what, file = f"this trainer, {options.concepts} concepts at once", str(folder / CONCEPTS)
        made[AT_ONCE] = Command(what, "trainer", [*many, "--concepts", file], "training")
    if options.diffusers_script is not None:
        script = str(options.diffusers_script.resolve())
        theirs = [
            *common,
            *pictures,
            "--output_dir",
            str(folder / "diffusers"),
            "--lr_warmup_steps",
            "0",
        ]
        theirs += [f"--{flag}" for flag in options.diffusers_flags]
        what = "diffusers' train_dreambooth_lora.py"
        made[DIFFUSERS] = Command(what, script, theirs, "Steps")
    return made


def precision_of(options: Options, device: str) -> train_step.Precision:
    """Return the precision of every command."""
    return options.mixed_precision or ("fp16" if device == "cuda" else "no")


def prepare(options: Options, device: str, folder: Path) -> None:
    """Write the base, four pictures, and the list of concepts, which all have these pictures."""
    size, dtype = SIZES[options.size], getattr(torch, DTYPES[precision_of(options, device)])
    save_random_base(folder / "base", size, seed=options.seed, dtype=dtype, device=device)
    save_random_pictures(folder / PICTURES, 4, size.resolution, seed=options.seed)
    table = {"instance_data_dir": PICTURES, "instance_prompt": PROMPT}
    tables = {f"concept_{index}": table for index in range(options.concepts)}
    (folder / CONCEPTS).write_text(tomli_w.dumps(tables), encoding="utf-8")


def measure(options: Options, device: str) -> dict[str, list[Watched]]:
    """Return what was seen of every command; they take turns."""
    seen: dict[str, list[Watched]] = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(options, device, Path(name))
        todo = commands(options, device, Path(name))
        for repetition in range(options.repetitions):
            for key, command in todo.items():
                sys.stderr.write(f"{repetition + 1}/{options.repetitions}: {command.what}\n")
                watched = watch(command, options.warmup + options.steps, options.warmup)
                seen.setdefault(key, []).append(watched)
    return seen


def seconds_of(seen: Mapping[str, Sequence[Watched]]) -> dict[str, list[float]]:
    """Return every command's seconds a step."""
    return {name: [watched.seconds_per_step for watched in runs] for name, runs in seen.items()}


def summary(name: str, seen: Mapping[str, Sequence[Watched]]) -> dict[str, Any]:
    """Return one command's part of the result."""
    seconds, own = seconds_of(seen), seen[name][-1].peak_mib
    others = {other: seen[other][-1].peak_mib for other in (FLOOR, DIFFUSERS) if other in seen}
    return {
        "what": seen[name][-1].what,
        "seconds_per_step": spread(seconds[name]),
        "steps_per_second": spread(1 / each for each in seconds[name]),
        "peak_mib": own,
        "times_as_fast_as": {other: ratio(seconds[other], seconds[name]) for other in others},
        "times_the_memory_of": {
            other: {kind: float(f"{mine / peak[kind]:.4g}") for kind, mine in own.items()}
            for other, peak in others.items()
        },
    }


def concepts_per_minute(seen: Mapping[str, Sequence[Watched]], count: int) -> dict[str, Any]:
    """Return how many concepts of a thousand steps a minute makes, at once and one by one."""
    seconds = seconds_of(seen)
    one_by_one = [count * spent for spent in seconds[TRAINER]]

    def per_minute(step_of_all: Sequence[float]) -> dict[str, float]:
        return spread(60 * count / (STEPS_OF_A_CONCEPT * spent) for spent in step_of_all)

    return {
        "concepts": count,
        "steps": STEPS_OF_A_CONCEPT,
        "one_by_one": per_minute(one_by_one),
        "at_once": per_minute(seconds[AT_ONCE]),
        "times_as_many": ratio(one_by_one, seconds[AT_ONCE]),
    }


def profiled(options: Options, device: str) -> dict[str, Any]:
    """Profile the trainer's steps in this process, on a U-Net of this size."""
    size = SIZES[options.size]
    step_options = train_step.Options(
        rank=options.rank,
        latent_size=size.resolution // 8,
        seed=options.seed,
        block_out_channels=size.unet,
        cross_attention_dim=size.text,
        device=device,
        dtype=DTYPES[precision_of(options, device)],
    )
    unet = train_step.build_unet(step_options)
    variant = train_step.the_trainer("loldu", 1, unet, step_options)
    return kernels.kernels(variant.take, options.profile)


def script_of(path: Path) -> dict[str, str]:
    """Return what tells a script from others, or end the command where there is none.

    Raises:
        SystemExit: There is none.
    """
    if not path.is_file():
        sys.exit(
            f"--diffusers_script {path} is not a file: take examples/dreambooth/"
            "train_dreambooth_lora.py from diffusers' repository, no newer than the installed one."
        )
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def table(result: dict[str, Any]) -> Table:
    """Return the result for a person."""
    made = Table(
        title=f"{result['resolution']} pixels, {result['mixed_precision']}, batch 1",
        caption=_caption(result["concepts_per_minute"]),
    )
    made.add_column("command", no_wrap=True)
    kinds = [*result["commands"][FLOOR]["peak_mib"]]
    memory = (f"{kind} MiB" for kind in kinds)
    for column in ("steps/s", "/ diffusers", "/ floor", *memory, "/ diffusers"):
        made.add_column(column, justify="right")
    for name, command in result["commands"].items():
        speed = command["times_as_fast_as"]
        memory = command["times_the_memory_of"].get(DIFFUSERS)
        made.add_row(
            name,
            f"{command['steps_per_second']['median']:.3g}",
            f"{speed[DIFFUSERS]['median']:.2f}" if DIFFUSERS in speed else "",
            f"{speed[FLOOR]['median']:.2f}",
            *(f"{command['peak_mib'][kind]:.5g}" for kind in kinds),
            f"{memory[kinds[0]]:.2f}" if memory else "",
        )
    return made


def _caption(concepts: dict[str, Any] | None) -> str | None:
    if concepts is None:
        return None
    return (
        f"{concepts['concepts']} concepts at once: {concepts['at_once']['median']:.3g} a minute, "
        f"{concepts['times_as_many']['median']:.2f} times as many as one by one"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the JSON, and show the tables."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = tyro.cli(
        Options, args=arguments, prog="python -m benchmarks.train_gpu", use_underscores=True
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"  # as the trainers choose
    if device == "cpu" and options.size == "sd15":
        sys.exit("PyTorch finds no GPU here; give --size smallest to run on the CPU.")
    if min(options.repetitions, options.steps) < 1:
        sys.exit("Nothing would be timed: give --repetitions and --steps a number of at least 1.")
    script = None if options.diffusers_script is None else script_of(options.diffusers_script)
    seen = measure(options, device)
    libraries = ["torch", "diffusers", "transformers", "peft", "accelerate"]
    result = {
        **provenance("benchmarks.train_gpu", arguments, libraries),
        "device": named(device),
        "diffusers_script": script,
        "resolution": SIZES[options.size].resolution,
        "mixed_precision": precision_of(options, device),
        "rank": options.rank,
        "warmup": options.warmup,
        "steps": options.steps,
        "repetitions": options.repetitions,
        "seed": options.seed,
        "commands": {name: summary(name, seen) for name in seen},
        "concepts_per_minute": concepts_per_minute(seen, options.concepts)
        if options.concepts
        else None,
        "profile": profiled(options, device) if options.profile else None,
    }
    write_record(options.output, result)
    console = Console(stderr=True)
    console.print(table(result))
    if options.profile:
        console.print(kernels.table(result["profile"]))


if __name__ == "__main__":
    main()
