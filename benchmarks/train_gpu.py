"""Steps a second and memory: this trainer, diffusers' train_dreambooth_lora.py, and the floor.

``python -m benchmarks.train_gpu --diffusers_script train_dreambooth_lora.py``. Every command runs
as a user runs it, in its own process, on the same pictures and the same base (Stable Diffusion
v1.5's shape, random weights). The speed is read from its progress bar, the memory from PyTorch in
its process. diffusers' script runs unmodified with its own defaults; it is in `examples/dreambooth`
of diffusers' repository, not in its wheel. The floor is `benchmarks.floor`, on a GPU compiled and
captured as one CUDA graph.
"""

import hashlib
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tomli_w
import torch
from rich.table import Table

from benchmarks import kernels, train_step
from benchmarks.harness import Dtype, digits, ratio, run, show, spread
from benchmarks.harness import Options as Shared
from benchmarks.stable_diffusion import SIZES, random_unet, save_random_base, save_random_pictures
from benchmarks.watched import Command, Watched, watch

DTYPES: dict[str, Dtype] = {p: dtype for dtype, p in train_step.PRECISIONS.items()}
PROMPT = "a photo of sks dog"
PICTURES, CONCEPTS = "pictures", "concepts.toml"
FLOOR, TRAINER, AT_ONCE, DIFFUSERS = "floor", "trainer", "concepts at once", "diffusers"
STEPS_OF_A_CONCEPT = 1000


@dataclass(frozen=True)
class Options(Shared):
    """Run this trainer, diffusers' script and the floor in turns."""

    # Base model, and side of the pictures: sd15 is v1.5's, 512 pixels; smallest is for a CPU.
    size: Literal["sd15", "smallest"] = "sd15"
    # diffusers' train_dreambooth_lora.py; without it there is nothing to compare with.
    diffusers_script: Path | None = None
    # Flags of further runs of the trainer, without dashes, one string a run: compile "rank=full".
    also: tuple[str, ...] = ()
    # Flags of diffusers' script, without dashes: pre_compute_text_embeddings rank=32.
    diffusers_flags: tuple[str, ...] = ()
    # Number of concepts trained at once, compared with one run after another; 0 for none.
    concepts: int = 8
    # Precision of every command; fp16 on a GPU and no on a CPU unless given.
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    # Directions of each LoLDU layer; the paper uses 32.
    rank: int = 32
    # Steps that are timed, after the warm-up steps. Both should be multiples of 10, because the
    # trainer waits for the GPU after every tenth step.
    steps: int = 100
    warmup: int = 20
    # How many times every command runs; the result holds medians.
    repetitions: int = 3
    # Number of trainer steps to profile: kernels by time, launches, waits of the host.
    profile: int = 0
    # Device of the commands, as the trainers choose it: the GPU if there is one.
    device: str = "cuda" if torch.cuda.is_available() else "cpu"

    @property
    def precision(self) -> train_step.Precision:
        """Precision of every command."""
        return self.mixed_precision or ("fp16" if self.device == "cuda" else "no")

    @property
    def dtype(self) -> Dtype:
        """Dtype of the base and of the floor."""
        return DTYPES[self.precision]


def commands(options: Options, folder: Path) -> dict[str, Command]:
    """Return the commands by name; the base and the pictures are in the folder."""
    resolution = str(SIZES[options.size].resolution)
    taken = ["--max_train_steps", str(options.warmup + options.steps)]
    base = ["--pretrained_model_name_or_path", str(folder / "base")]
    common = [
        *(*base, *taken, "--resolution", resolution, "--mixed_precision", options.precision),
        *("--train_batch_size", "1", "--seed", str(options.seed)),
    ]
    pictures = ["--instance_data_dir", str(folder / PICTURES), "--instance_prompt", PROMPT]
    output = ["--output_dir", str(folder / "run"), "--overwrite"]
    many = [*common, *output, "--rank", str(options.rank), "--checkpointing_steps", "0"]
    ours = [*many, *pictures]
    graph = ["--compile", "--capture"] if options.device == "cuda" else []
    floor = [*base, *taken, "--device", options.device, "--dtype", options.dtype, *graph]
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
        theirs = [*common, *pictures, "--output_dir", str(folder / "diffusers")]
        theirs += ["--lr_warmup_steps", "0", *(f"--{flag}" for flag in options.diffusers_flags)]
        what = "diffusers' train_dreambooth_lora.py"
        made[DIFFUSERS] = Command(what, script, theirs, "Steps")
    return made


def prepare(options: Options, folder: Path) -> None:
    """Write the base, four pictures, and a list of concepts that all have these pictures."""
    size, dtype = SIZES[options.size], getattr(torch, options.dtype)
    save_random_base(folder / "base", size, seed=options.seed, dtype=dtype, device=options.device)
    save_random_pictures(folder / PICTURES, 4, size.resolution, seed=options.seed)
    table = {"instance_data_dir": PICTURES, "instance_prompt": PROMPT}
    tables = {f"concept_{index}": table for index in range(options.concepts)}
    (folder / CONCEPTS).write_text(tomli_w.dumps(tables), encoding="utf-8")


def watch_all(options: Options) -> dict[str, list[Watched]]:
    """Run the commands in turns; return speed and memory of each run."""
    seen: dict[str, list[Watched]] = {}
    with tempfile.TemporaryDirectory() as name:
        prepare(options, Path(name))
        for repetition in range(options.repetitions):
            for key, command in commands(options, Path(name)).items():
                sys.stderr.write(f"{repetition + 1}/{options.repetitions}: {command.what}\n")
                watched = watch(command, options.warmup + options.steps, options.warmup)
                seen.setdefault(key, []).append(watched)
    return seen


def seconds_of(seen: Mapping[str, Sequence[Watched]]) -> dict[str, list[float]]:
    """Return the seconds a step of every command."""
    return {name: [watched.seconds_per_step for watched in runs] for name, runs in seen.items()}


def summary(name: str, seen: Mapping[str, Sequence[Watched]]) -> dict[str, Any]:
    """Return the result of one command."""
    seconds, own = seconds_of(seen), seen[name][-1].peak_mib
    others = {other: seen[other][-1].peak_mib for other in (FLOOR, DIFFUSERS) if other in seen}
    return {
        "what": seen[name][-1].what,
        "seconds_per_step": spread(seconds[name]),
        "steps_per_second": spread(1 / each for each in seconds[name]),
        "peak_mib": own,
        "times_as_fast_as": {other: ratio(seconds[other], seconds[name]) for other in others},
        "times_the_memory_of": {
            other: {kind: digits(mine / peak[kind]) for kind, mine in own.items()}
            for other, peak in others.items()
        },
    }


def concepts_per_minute(seen: Mapping[str, Sequence[Watched]], count: int) -> dict[str, Any]:
    """Return how many concepts of 1000 steps are trained in a minute, at once and one by one."""
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


def profiled(options: Options) -> dict[str, Any]:
    """Profile the trainer's steps in this process, on a U-Net of this size."""
    size = SIZES[options.size]
    step_options = train_step.Options(
        rank=options.rank,
        latent_size=size.resolution // 8,
        seed=options.seed,
        block_out_channels=size.unet,
        cross_attention_dim=size.text,
        device=options.device,
        dtype=options.dtype,
    )
    unet = random_unet(step_options, dtype=options.dtype)
    variant = train_step.the_trainer("loldu", 1, unet, step_options)
    return kernels.kernels(variant.take, options.profile)


def script_of(path: Path) -> dict[str, str]:
    """Return the name and the hash of a script.

    Raises:
        SystemExit: If the file does not exist.
    """
    if not path.is_file():
        sys.exit(
            f"--diffusers_script {path} is not a file: take examples/dreambooth/"
            "train_dreambooth_lora.py from diffusers' repository, no newer than the installed one."
        )
    return {"name": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def measure(options: Options) -> dict[str, Any]:
    """Return the results of all commands.

    Raises:
        SystemExit: If the options cannot work.
    """
    if options.device == "cpu" and options.size == "sd15":
        sys.exit("PyTorch finds no GPU here; give --size smallest to run on the CPU.")
    if min(options.repetitions, options.steps) < 1:
        sys.exit("Nothing would be timed: give --repetitions and --steps a number of at least 1.")
    script = None if options.diffusers_script is None else script_of(options.diffusers_script)
    seen, many = watch_all(options), options.concepts
    return {
        "diffusers_script": script,
        "resolution": SIZES[options.size].resolution,
        "mixed_precision": options.precision,
        "commands": {name: summary(name, seen) for name in seen},
        "concepts_per_minute": concepts_per_minute(seen, many) if many else None,
        "profile": profiled(options) if options.profile else None,
    }


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield the table of the commands, and that of the profile."""
    kinds = [*record["commands"][FLOOR]["peak_mib"]]
    rows = []
    for name, command in record["commands"].items():
        speed, memory = command["times_as_fast_as"], command["times_the_memory_of"]
        rows.append(
            {
                "command": name,
                "steps/s": command["steps_per_second"]["median"],
                "steps/s / diffusers": speed[DIFFUSERS]["median"] if DIFFUSERS in speed else "",
                "steps/s / floor": speed[FLOOR]["median"],
                **{f"{kind} MiB": command["peak_mib"][kind] for kind in kinds},
                "MiB / diffusers": memory[DIFFUSERS][kinds[0]] if DIFFUSERS in memory else "",
            }
        )
    title = f"{record['resolution']} pixels, {record['mixed_precision']}, batch 1"
    caption = None
    if concepts := record["concepts_per_minute"]:
        caption = (
            f"{concepts['concepts']} concepts at once: {concepts['at_once']['median']:.3g} a "
            f"minute, {concepts['times_as_many']['median']:.2f} times as many as one by one"
        )
    yield show(title, rows, caption)
    if record["profile"]:
        yield kernels.table(record["profile"])


main = partial(run, "train_gpu", Options, measure, tables)

if __name__ == "__main__":
    main()
