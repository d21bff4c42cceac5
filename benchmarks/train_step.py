"""The trainer's whole step with LoLDU, with PEFT's LoRA of the same rank, and the floor, in turns.

``python -m benchmarks.train_step``. Steps are taken by the trainer's own `fit`: it draws the batch,
adds noise, runs the U-Net forward and backward, clips, steps the optimizer and counts the losses.
On a CPU its own clock is read, which stops before a log line is written. The floor is the forward
and backward that no adapter can do without: see `benchmarks.floor`. All share the weights of one
U-Net, random, of Stable Diffusion v1.5's shape unless told otherwise.
"""

import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from rich.console import Console
from rich.table import Table
from torch import nn

from benchmarks.adapters import held
from benchmarks.device import in_turns, named, seconds_of
from benchmarks.floor import floor_step, random_inputs, with_shared_weights
from benchmarks.memory import mib, peak_bytes
from benchmarks.spread import ratio, spread
from benchmarks.stable_diffusion import TEXT_TOKENS, noise_scheduler
from loldu.base.stable_diffusion import STATES
from loldu.errors import LoLDUError
from loldu.provenance import provenance, write_record
from trainer.methods.method import add_trainables
from trainer.options.config import (
    AdapterConfig,
    Config,
    InstanceConfig,
    Method,
    OptimizationConfig,
    RunConfig,
)
from trainer.train_dreambooth_loldu import make_accelerator
from trainer.training.cache import Cache
from trainer.training.checkpoint import Progress
from trainer.training.control import Control
from trainer.training.ema import EMA
from trainer.training.fit import Run, fit
from trainer.training.objective import Denoiser, DreamBooth, Objective
from trainer.training.optimizers import make_optimizer
from trainer.training.tracking import Trackers

RESULTS = Path(__file__).parent / "results"
Dtype = Literal["float32", "float16", "bfloat16"]
Precision = Literal["no", "fp16", "bf16"]
PRECISIONS: dict[Dtype, Precision] = {
    "float32": "no",
    "float16": "fp16",
    "bfloat16": "bf16",
}
PICTURES = 4


@dataclass(frozen=True)
class Options:
    """Time the trainer's step with LoLDU and with LoRA, and the floor, in one process."""

    # Directions a layer, of LoLDU and of LoRA.
    rank: int = 32
    # Pictures a step and concept.
    batch: int = 1
    # Concepts that are trained at once, beside one by one.
    concepts: int = 4
    # Side of the latents, 64 for pictures of 512 pixels; unless given, 64 on a GPU, 16 elsewhere.
    latent_size: int | None = None
    # Times everything is timed; medians are reported.
    repetitions: int = 9
    # Steps that are timed as one: on a GPU 10 or more, for the host runs ahead of it in training;
    # one log line is among them there.
    steps: int = 1
    # Of the random weights and inputs.
    seed: int = 0
    # Widths of the U-Net's four stages; Stable Diffusion v1.5's unless given.
    block_out_channels: tuple[int, int, int, int] = (320, 640, 1280, 1280)
    # Width of the text's features; Stable Diffusion v1.5's unless given.
    cross_attention_dim: int = 768
    # Where to measure: cpu or cuda.
    device: str = "cpu"
    # Of the base; what is trained stays in float32. float16 needs a GPU.
    dtype: Dtype = "float32"
    # Where the result is written, over the last one.
    output: Path = RESULTS / "train_step.json"


@dataclass(frozen=True)
class Variant:
    """A way to train.

    Attributes:
        what: In words.
        take: Takes so many steps and tells the seconds.
        trained: Numbers trained.
        state_bytes: Reads what is held between steps beside the U-Net: adapter and optimizer.
    """

    what: str
    take: Callable[[int], float]
    trained: int
    state_bytes: Callable[[], int]


def the_floor(unet: UNet2DConditionModel, options: Options) -> Variant:
    """Forward and backward alone; it trains and holds nothing."""
    step = floor_step(unet, random_inputs(unet, latent_size(options), options.batch))

    def steps(count: int) -> None:
        for _ in range(count):
            step()

    def take(count: int) -> float:
        return seconds_of(partial(steps, count), options.device)

    what = "the frozen U-Net's forward, and backward to the attention projections"
    return Variant(what, take, 0, lambda: 0)


def the_trainer(
    method: Method, concepts: int, unet: UNet2DConditionModel, options: Options
) -> Variant:
    """Put together what the trainer's command does, with random latents in its caches.

    Raises:
        LoLDUError: when the device cannot do the dtype.
    """
    config = config_of(method, options)
    configs = {f"concept_{index}": config for index in range(concepts)}
    accelerator = make_accelerator(config)
    pipeline = pipeline_of(unet)
    base_bytes = sum(held([unet]).values())
    trained = add_trainables(pipeline, configs, {})
    dreambooths = [
        DreamBooth(pipeline, random_cache(unet, options), own) for own in configs.values()
    ]
    objective = Objective(dreambooths, trained, config)
    optimizer = make_optimizer(config.optimization, trained.groups(config.optimization))
    ema = EMA(trained.parameters(), config.optimization.ema_decay)
    denoiser, prepared = accelerator.prepare(Denoiser(pipeline), optimizer)
    progress = Progress()

    def steps(count: int) -> None:
        nonlocal progress
        last = replace(config.optimization, max_train_steps=progress.step + count)
        with tempfile.TemporaryDirectory() as folder, redirect_stderr(StringIO()):  # its bar
            log = RunConfig(Path(folder), checkpointing_steps=0, logging_steps=2**31)
            now = replace(config, optimization=last, run=log)
            same, control = dict.fromkeys(configs, now), Control(log, accelerator)
            trackers = Trackers(now, 0, enabled=False)
            run = Run(now, same, {}, pipeline, trained, ema, accelerator, control, trackers)
            progress = fit(run, denoiser, prepared, objective, progress)

    def take(count: int) -> float:
        before = progress.seconds
        spent = seconds_of(partial(steps, count), options.device)
        return spent if options.device.startswith("cuda") else progress.seconds - before

    def state_bytes() -> int:
        states = [value for state in optimizer.state.values() for value in state.values()]
        return sum(held([unet]).values()) - base_bytes + sum(tensor.nbytes for tensor in states)

    what = f"the trainer's step with {method}"
    if concepts > 1:
        what += f", {concepts} concepts at once, each with a batch of its own"
    numbers = sum(p.numel() for name in configs for p in trained.parameters(name))
    return Variant(what, take, numbers, state_bytes)


def config_of(method: Method, options: Options) -> Config:
    """Return the options of a run; what is not told is as the trainer has it."""
    return Config(
        instance=InstanceConfig(),
        adapter=AdapterConfig(method=method, rank=options.rank),
        optimization=OptimizationConfig(
            train_batch_size=options.batch, mixed_precision=PRECISIONS[options.dtype]
        ),
        run=RunConfig(output_dir=Path()),
    )


def pipeline_of(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """Return a pipeline of which the trainer's steps need no more than the U-Net."""
    absent: dict[str, Any] = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    )
    schedule: Any = noise_scheduler()  # any of diffusers' will do
    return StableDiffusionPipeline(
        unet=unet, scheduler=schedule, requires_safety_checker=False, **absent
    )


FLOOR, LOLDU, LORA, CONCEPTS = "floor", "loldu", "lora", "loldu_concepts"


def makers(options: Options) -> dict[str, Callable[[UNet2DConditionModel, Options], Variant]]:
    """Return what makes each variant of a U-Net."""
    return {
        FLOOR: the_floor,
        LOLDU: partial(the_trainer, "loldu", 1),
        LORA: partial(the_trainer, "lora", 1),
        CONCEPTS: partial(the_trainer, "loldu", options.concepts),
    }


def latent_size(options: Options) -> int:
    """Return the side of the latents."""
    return options.latent_size or (64 if options.device.startswith("cuda") else 16)


def build_unet(options: Options) -> UNet2DConditionModel:
    """Return the frozen U-Net."""
    torch.manual_seed(options.seed)
    unet = UNet2DConditionModel(
        block_out_channels=options.block_out_channels,
        cross_attention_dim=options.cross_attention_dim,
    )
    unet.requires_grad_(False).eval()
    nn.Module.to(unet, options.device, getattr(torch, options.dtype))
    return unet


def random_cache(unet: UNet2DConditionModel, options: Options) -> Cache:
    """Return some pictures of one prompt, as the VAE and the text encoder leave them."""
    shape = (PICTURES, 4, latent_size(options), latent_size(options))
    text = torch.randn(1, TEXT_TOKENS, options.cross_attention_dim)
    return Cache(
        mean=torch.randn(shape).to(options.device),
        std=torch.rand(shape).to(options.device),
        conditioning={STATES: text.to(options.device, unet.dtype)},
        prompt_of_view=torch.zeros(PICTURES, dtype=torch.int64, device=options.device),
        instances=[range(index, index + 1) for index in range(PICTURES)],
        classes=[],
    )


def measure(options: Options) -> dict[str, Any]:
    """Return time and memory by variant; what measures memory warms up."""
    base = build_unet(options)
    variants = {
        name: make(with_shared_weights(base), options) for name, make in makers(options).items()
    }
    results: dict[str, dict[str, Any]] = {}
    for name, variant in variants.items():
        step_bytes = peak_bytes(options.device, partial(variant.take, 1))
        state_bytes = variant.state_bytes()
        results[name] = {
            "what": variant.what,
            "trained": variant.trained,
            "state_mib": mib(state_bytes),
            "step_peak_mib": mib(step_bytes),
            "above_the_model_mib": mib(state_bytes + step_bytes),
        }
    turns = {name: partial(variant.take, options.steps) for name, variant in variants.items()}
    seconds = in_turns(turns, options.repetitions)
    for name, result in results.items():
        memory = result["above_the_model_mib"]
        result["seconds_per_step"] = spread(spent / options.steps for spent in seconds[name])
        result["times_as_long_as"] = {
            other: ratio(seconds[name], seconds[other]) for other in (FLOOR, LORA)
        }
        result["times_the_memory_of"] = {
            other: float(f"{memory / results[other]['above_the_model_mib']:.4g}")
            for other in (FLOOR, LORA)
        }
    one_by_one = [options.concepts * spent for spent in seconds[LOLDU]]
    results[CONCEPTS]["times_as_long_as_one_by_one"] = ratio(seconds[CONCEPTS], one_by_one)
    return results


def table(result: dict[str, Any]) -> Table:
    """Return the result for a person."""
    side = result["latent_size"]
    at_once = result["variants"][CONCEPTS]["times_as_long_as_one_by_one"]["median"]
    made = Table(
        title=f"a training step, {side} x {side} latents, r = {result['rank']}",
        caption=f"{result['concepts']} concepts at once: {at_once:.3f} times as long as one by one",
    )
    made.add_column("variant", no_wrap=True)
    for column in ("trained", "ms", "/ LoRA", "/ floor", "state", "MiB", "/ LoRA"):
        made.add_column(column, justify="right")
    for name, variant in result["variants"].items():
        made.add_row(
            name,
            str(variant["trained"]),
            f"{1000 * variant['seconds_per_step']['median']:.4g}",
            f"{variant['times_as_long_as'][LORA]['median']:.3f}",
            f"{variant['times_as_long_as'][FLOOR]['median']:.3f}",
            f"{variant['state_mib']:.3g}",
            f"{variant['above_the_model_mib']:.4g}",
            f"{variant['times_the_memory_of'][LORA]:.3f}",
        )
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, write the JSON, and show the table."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = tyro.cli(
        Options, args=arguments, prog="python -m benchmarks.train_step", use_underscores=True
    )
    device = named(options.device)
    if device == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "1"  # also where there is a GPU
    try:
        variants = measure(options)
    except LoLDUError as error:
        sys.exit(str(error))
    result = {
        **provenance(
            "benchmarks.train_step", arguments, ["torch", "diffusers", "peft", "accelerate"]
        ),
        "device": device,
        "dtype": options.dtype,
        "rank": options.rank,
        "batch": options.batch,
        "concepts": options.concepts,
        "latent_size": latent_size(options),
        "block_out_channels": options.block_out_channels,
        "cross_attention_dim": options.cross_attention_dim,
        "repetitions": options.repetitions,
        "steps": options.steps,
        "seed": options.seed,
        "variants": variants,
    }
    write_record(options.output, result)
    Console(stderr=True).print(table(result))


if __name__ == "__main__":
    main()
