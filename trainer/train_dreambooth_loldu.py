"""Teach a Stable Diffusion model a new concept from a few pictures (DreamBooth with LoLDU).

    accelerate launch trainer/train_dreambooth_loldu.py --instance_data_dir pictures \
        --instance_prompt "a photo of sks dog" --output_dir runs/dog

`python -m trainer` is the same command; `--help` explains every option.
"""

import dataclasses
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: import from the repository, not from this file's folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from diffusers import StableDiffusionPipeline
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.contrib.logging import logging_redirect_tqdm

from loldu import project
from trainer.__main__ import run
from trainer.base import load_pipeline
from trainer.cache import Cache, build_cache, leave_device
from trainer.checkpoint import (
    Progress,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trainer.compilation import compile_unet, uncompiled
from trainer.config import Config, sections
from trainer.ema import EMA
from trainer.errors import TrainerError
from trainer.instances import CaptionedImage, find_instances
from trainer.loop import DreamBooth, learning_rate
from trainer.memory import MemoryLadder
from trainer.methods import add_adapter, save_result
from trainer.optimizers import make_optimizer, optimizer_class
from trainer.prior import class_images
from trainer.records import (
    MetricsLog,
    draw_validation,
    open_output_dir,
    refuse_another_run,
    write_summary,
)

logger = logging.getLogger("trainer")

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WHILE_THE_FIRST_DRAWS = timedelta(hours=12)
"""How long the other processes wait for its class and validation pictures; NCCL's ten minutes are
too few."""


def main(config: Config) -> None:
    """Train one concept, from the pictures to the concept file.

    Raises:
        TrainerError: for what the person can put right.
    """
    # ------------------------------------------------------------ what can fail fast, fails first
    optimization = config.optimization
    optimizer_class(optimization.optimizer)
    accelerator = make_accelerator(config)
    instances = find_instances(config.instance)
    checkpoint = find_checkpoint(config)
    refuse_another_run(config.run, checkpoint)

    # ------------------------------------------------------------------------- the frozen base
    pipeline = load_pipeline(
        **dataclasses.asdict(config.base),
        torch_dtype=DTYPES[optimization.mixed_precision],
        device=accelerator.device,
    )

    # ------------------------------------------- pictures, class pictures, their latents, prompts
    cache = prepare_pictures(config, pipeline, instances, accelerator)
    objective = DreamBooth(pipeline.unet, pipeline.scheduler, cache, config)

    # --------------------------------------------------------- the adapter, after the base's cast
    trainable = add_adapter(pipeline.unet, config.adapter, optimization.seed)
    if config.performance.gradient_checkpointing:
        pipeline.unet.enable_gradient_checkpointing()
    optimizer = make_optimizer(optimization, list(trainable.values()))
    unet, optimizer = accelerator.prepare(pipeline.unet, optimizer)
    compile_unet(pipeline.unet, config.performance.compile)
    ema = EMA(list(trainable.values()), optimization.ema_decay)
    progress = Progress()
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, pipeline.unet, optimizer, ema, accelerator)
        logger.info("Resuming after step %d from %s", progress.step, checkpoint)

    # ------------------------------------------------------------------------------- training
    parameters = sum(parameter.numel() for parameter in trainable.values())
    logger.info(
        "Training %s parameters (%s) on %d pictures and %d class pictures",
        f"{parameters:,}",
        config.adapter.method,
        len(cache.instances),
        len(cache.classes),
    )
    if accelerator.is_main_process:
        open_output_dir(config, checkpoint)
    with logging_redirect_tqdm():
        progress = fit(config, pipeline, unet, optimizer, ema, objective, accelerator, progress)

    # --------------------------------------------------------------------------------- result
    if accelerator.is_main_process:
        metadata = describe(config, progress)
        with as_saved(config, pipeline, ema):
            concept = save_result(pipeline, config.adapter, config.run.output_dir, metadata)
        write_summary(config.run.output_dir, concept, parameters, progress)
        logger.info("Saved %s (%s bytes)", concept, f"{concept.stat().st_size:,}")
    accelerator.end_training()


def make_accelerator(config: Config) -> Accelerator:
    """The device, the precision, and as many processes as `accelerate launch` started.

    Raises:
        TrainerError: when the device cannot do the precision, or several processes not --on_oom.
    """
    precision = config.optimization.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise TrainerError(
            "--mixed_precision fp16 needs a CUDA GPU and there is none; use --mixed_precision no."
        )
    # Frozen buffers are the same in every process: nothing to broadcast each step.
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=config.optimization.gradient_accumulation_steps,
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            InitProcessGroupKwargs(timeout=WHILE_THE_FIRST_DRAWS),
        ],
    )
    if config.performance.on_oom == "adapt" and accelerator.num_processes > 1:
        raise TrainerError(
            "--on_oom adapt works in one process; with several, give --gradient_checkpointing and "
            "a smaller --train_batch_size yourself."
        )
    logger.setLevel(logging.INFO if accelerator.is_main_process else logging.WARNING)
    return accelerator


def prepare_pictures(
    config: Config,
    pipeline: StableDiffusionPipeline,
    instances: list[CaptionedImage],
    accelerator: Accelerator,
) -> Cache:
    """Draw the class pictures that are missing, encode everything once, free the device."""
    classes: list[CaptionedImage] = []
    if config.prior.with_prior_preservation:
        with accelerator.main_process_first():  # the others find them drawn
            classes = class_images(
                pipeline,
                config.prior,
                config.run.output_dir,
                resolution=config.instance.resolution,
                seed=config.optimization.seed,
                num_inference_steps=config.run.num_inference_steps,
                guidance_scale=config.run.guidance_scale,
            )
    cache = build_cache(
        pipeline, instances, classes, config.instance, seed=config.optimization.seed
    )
    leave_device(pipeline)
    return cache


def fit(
    config: Config,
    pipeline: StableDiffusionPipeline,
    unet: nn.Module,
    optimizer: torch.optim.Optimizer,
    ema: EMA,
    objective: DreamBooth,
    accelerator: Accelerator,
    progress: Progress,
) -> Progress:
    """Take the remaining steps; `unet` is `pipeline.unet` as accelerate wraps it."""
    optimization, run = config.optimization, config.run
    adapt = config.performance.on_oom == "adapt"
    ladder = MemoryLadder(pipeline.unet, accelerator, objective.rows, adapt=adapt)
    log = MetricsLog(config, progress.step, enabled=accelerator.is_main_process)
    started = time.perf_counter() - progress.seconds
    if progress.step == 0:
        validate(config, pipeline, ema, 0, accelerator)
    with closing(log):
        for step in range(progress.step, optimization.max_train_steps):
            lr = learning_rate(optimization, step)
            for group in optimizer.param_groups:
                group["lr"] = lr
            passes = partial(accumulate_gradients, unet, objective, accelerator, ladder, step)
            log.count(ladder.take(passes))
            if optimization.max_grad_norm:
                parameters = optimizer.param_groups[0]["params"]
                accelerator.clip_grad_norm_(parameters, optimization.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if optimization.max_delta_norm is not None:
                project(pipeline.unet, optimization.max_delta_norm)
            ema.update(step + 1)
            progress = Progress(step + 1, time.perf_counter() - started)
            log.finish_step(progress, lr, pipeline.unet)
            validate(config, pipeline, ema, progress.step, accelerator)
            due = run.checkpointing_steps and progress.step % run.checkpointing_steps == 0
            if due and accelerator.is_main_process:
                save_checkpoint(config, progress, pipeline.unet, optimizer, ema, accelerator)
    return progress


def accumulate_gradients(
    unet: nn.Module,
    objective: DreamBooth,
    accelerator: Accelerator,
    ladder: MemoryLadder,
    step: int,
) -> Float[Tensor, "3"]:
    """Every forward and backward pass of a step; the mean of their losses."""
    passes = accelerator.gradient_accumulation_steps
    losses = []
    for pass_index in range(step * passes, (step + 1) * passes):
        with accelerator.accumulate(unet):
            batch = objective.draw(pass_index, accelerator.process_index, accelerator.num_processes)
            for rows in ladder.slices():
                part = objective.losses(unet, batch, rows)
                accelerator.backward(part.total)
                losses.append(part.values())
    return torch.stack(losses).sum(dim=0) / passes


def validate(
    config: Config,
    pipeline: StableDiffusionPipeline,
    ema: EMA,
    step: int,
    accelerator: Accelerator,
) -> None:
    """Draw the validation prompts when they are due."""
    every = config.run.validation_steps
    if every and step % every == 0 and accelerator.is_main_process:
        with as_saved(config, pipeline, ema), uncompiled():
            path = draw_validation(pipeline, config, step, accelerator.device)
        logger.info("Validation pictures: %s", path)


@contextmanager
def as_saved(config: Config, pipeline: StableDiffusionPipeline, ema: EMA) -> Iterator[None]:
    """The adapter as the concept file has it: averaged, and inside the ball all the same."""
    optimization = config.optimization
    with ema.applied():
        if optimization.ema_decay is not None and optimization.max_delta_norm is not None:
            # A mean of scales times a mean of z is not a mean of deltas: it can lie outside.
            project(pipeline.unet, optimization.max_delta_norm)
        yield


def describe(config: Config, progress: Progress) -> dict[str, Any]:
    """What the concept file tells about its making; where things lay is nobody's business."""
    told = sections(config)
    return {
        "method": config.adapter.method,
        "instance_prompt": config.instance.instance_prompt,
        "class_prompt": told["prior"]["class_prompt"],
        "resolution": config.instance.resolution,
        "steps": progress.step,
        "seed": config.optimization.seed,
        "adapter": told["adapter"],
        "optimization": told["optimization"],
    }


if __name__ == "__main__":
    sys.exit(run())
