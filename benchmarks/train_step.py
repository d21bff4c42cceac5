"""The trainer's whole step with LoLDU, with PEFT's LoRA of the same rank, and the floor, in turns.

``python -m benchmarks.train_step``. The trainer's own `fit` takes the steps: it draws the batch,
adds noise, runs the U-Net forward and backward, clips, steps the optimizer and logs the losses. On
a CPU the trainer's own clock is read, which excludes the writing of log lines. The floor is the
work that every adapter needs: see `benchmarks.floor`. All share the random weights of one U-Net.
"""

import os
import tempfile
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from rich.table import Table

from benchmarks.adapters import held
from benchmarks.floor import floor_step, with_shared_weights
from benchmarks.harness import (
    Dtype,
    StepOptions,
    compare,
    in_turns,
    mib,
    peak_bytes,
    ratio,
    run,
    seconds_of,
    show,
    spread,
)
from benchmarks.stable_diffusion import TEXT_TOKENS, noise_scheduler, random_inputs, random_unet
from loldu.base.stable_diffusion import STATES
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

Precision = Literal["no", "fp16", "bf16"]
PRECISIONS: dict[Dtype, Precision] = {
    "float32": "no",
    "float16": "fp16",
    "bfloat16": "bf16",
}
PICTURES = 4


@dataclass(frozen=True)
class Options(StepOptions):
    """Time the trainer's step with LoLDU and with LoRA, and the floor, in one process."""

    # Directions of each layer, for LoLDU and for LoRA.
    rank: int = 32
    # Pictures a step, for each concept.
    batch: int = 1
    # Number of concepts trained at once, compared with one by one.
    concepts: int = 4
    # How many times everything is timed; the result holds medians.
    repetitions: int = 9
    # Steps timed as one. On a GPU give 10 or more, because the host runs ahead of it in training;
    # one log line is among them there.
    steps: int = 1


class Variant(NamedTuple):
    """A way to train.

    `take` takes a number of steps and returns the seconds. `state_bytes` returns the bytes that
    adapter and optimizer hold between steps.
    """

    what: str
    take: Callable[[int], float]
    trained: int
    state_bytes: Callable[[], int]


def the_floor(unet: UNet2DConditionModel, options: Options) -> Variant:
    """Return the forward and backward pass alone, which trains and holds nothing."""
    step = floor_step(unet, random_inputs(unet, options.side, options.batch))

    def take(count: int) -> float:
        return seconds_of(lambda: [step() for _ in range(count)], options.device)

    what = "the frozen U-Net's forward, and backward to the attention projections"
    return Variant(what, take, 0, lambda: 0)


def the_trainer(
    method: Method, concepts: int, unet: UNet2DConditionModel, options: Options
) -> Variant:
    """Set up a run like the trainer's command, with random latents in its caches.

    Raises:
        LoLDUError: If the device cannot compute in the dtype.
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
            run = Run(now, same, {}, pipeline, trained, ema, accelerator, control)
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
    """Return the trainer's default config with the rank, batch and precision of the options."""
    return Config(
        instance=InstanceConfig(),
        adapter=AdapterConfig(method=method, rank=options.rank),
        optimization=OptimizationConfig(
            train_batch_size=options.batch, mixed_precision=PRECISIONS[options.dtype]
        ),
        run=RunConfig(output_dir=Path()),
    )


def pipeline_of(unet: UNet2DConditionModel) -> StableDiffusionPipeline:
    """Return a pipeline with a U-Net only, which is all that the trainer's steps need."""
    absent: dict[str, Any] = dict.fromkeys(
        ("vae", "text_encoder", "tokenizer", "safety_checker", "feature_extractor")
    )
    schedule: Any = noise_scheduler()  # the annotation is narrower than what it takes
    return StableDiffusionPipeline(
        unet=unet, scheduler=schedule, requires_safety_checker=False, **absent
    )


FLOOR, LOLDU, LORA, CONCEPTS = "floor", "loldu", "lora", "loldu_concepts"
MAKERS: dict[str, Callable[[UNet2DConditionModel, Options], Variant]] = {
    FLOOR: the_floor,
    LOLDU: partial(the_trainer, "loldu", 1),
    LORA: partial(the_trainer, "lora", 1),
    CONCEPTS: lambda unet, options: the_trainer("loldu", options.concepts, unet, options),
}


def random_cache(unet: UNet2DConditionModel, options: Options) -> Cache:
    """Return random encodings of some pictures and one prompt."""
    shape = (PICTURES, 4, options.side, options.side)
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
    """Return time and memory of all variants; measuring memory is the warm-up."""
    if not options.device.startswith("cuda"):
        os.environ["ACCELERATE_USE_CPU"] = "1"  # also on a machine with a GPU
    base = random_unet(options, dtype=options.dtype)
    variants = {name: make(with_shared_weights(base), options) for name, make in MAKERS.items()}
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
        result["seconds_per_step"] = spread(spent / options.steps for spent in seconds[name])
    compare(results, seconds, "above_the_model_mib", (FLOOR, LORA))
    one_by_one = [options.concepts * spent for spent in seconds[LOLDU]]
    results[CONCEPTS]["times_as_long_as_one_by_one"] = ratio(seconds[CONCEPTS], one_by_one)
    return {"latent_size": options.side, "variants": results}


def tables(record: dict[str, Any]) -> Iterable[Table]:
    """Yield the table of the variants."""
    side = record["latent_size"]
    at_once = record["variants"][CONCEPTS]["times_as_long_as_one_by_one"]["median"]
    rows = [
        {
            "variant": name,
            "trained": variant["trained"],
            "ms": 1000 * variant["seconds_per_step"]["median"],
            "ms / LoRA": variant["times_as_long_as"][LORA]["median"],
            "ms / floor": variant["times_as_long_as"][FLOOR]["median"],
            "state MiB": variant["state_mib"],
            "MiB": variant["above_the_model_mib"],
            "MiB / LoRA": variant["times_the_memory_of"][LORA],
        }
        for name, variant in record["variants"].items()
    ]
    yield show(
        f"a training step, {side} x {side} latents, r = {record['rank']}",
        rows,
        f"{record['concepts']} concepts at once: {at_once:.3f} times as long as one by one",
    )


main = partial(run, "train_step", Options, measure, tables)

if __name__ == "__main__":
    main()
