"""Teach a Stable Diffusion model a new concept from a few pictures (DreamBooth with LoLDU).

    accelerate launch trainer/train_dreambooth_loldu.py --instance_data_dir pictures \
        --instance_prompt "a photo of sks dog" --output_dir runs/dog

`python -m trainer` is the same command; `--help` explains every option.
"""

import dataclasses
import logging
import sys
import time
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: import from the repository, not from this file's folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from diffusers import StableDiffusionPipeline
from torch import nn
from torch.optim import AdamW
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
from trainer.config import Config, sections
from trainer.control import Control, Request
from trainer.errors import Stopped, TrainerError
from trainer.instances import CaptionedImage, find_instances
from trainer.loop import DreamBooth, learning_rate
from trainer.methods import add_adapter, save_result
from trainer.prior import class_images
from trainer.records import (
    MetricsLog,
    open_output_dir,
    refuse_another_run,
    write_summary,
)
from trainer.tracking import refuse_missing_trackers
from trainer.validation import Validation

logger = logging.getLogger("trainer")

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(config: Config) -> None:
    """Train one concept, from the pictures to the concept file.

    Raises:
        TrainerError: for what the person can put right.
        Stopped: when it was asked to stop.
    """
    # ------------------------------------------------------------ what can fail fast, fails first
    optimization = config.optimization
    accelerator = make_accelerator(config)
    instances = find_instances(config.instance)
    checkpoint = find_checkpoint(config)
    refuse_another_run(config.run, checkpoint)
    refuse_missing_trackers(config.run)
    control = Control(config.run, accelerator)

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
    optimizer = AdamW(
        list(trainable.values()),
        lr=optimization.learning_rate,
        weight_decay=optimization.adam_weight_decay,
        fused=True,
    )
    unet, optimizer = accelerator.prepare(pipeline.unet, optimizer)
    progress = Progress()
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, pipeline.unet, optimizer, accelerator)
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
    with logging_redirect_tqdm(), control.listening():
        progress = fit(config, pipeline, unet, optimizer, objective, accelerator, progress, control)

    # --------------------------------------------------------------------------------- result
    if accelerator.is_main_process:
        metadata = describe(config, progress)
        concept = save_result(pipeline, config.adapter, config.run.output_dir, metadata)
        write_summary(config.run.output_dir, concept, parameters, progress)
        logger.info("Saved %s (%s bytes)", concept, f"{concept.stat().st_size:,}")
    accelerator.end_training()


def make_accelerator(config: Config) -> Accelerator:
    """The device, the precision, and as many processes as `accelerate launch` started.

    Raises:
        TrainerError: when the device cannot do the precision.
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
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
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
    objective: DreamBooth,
    accelerator: Accelerator,
    progress: Progress,
    control: Control,
) -> Progress:
    """Take the remaining steps; `unet` is `pipeline.unet` as accelerate wraps it.

    Raises:
        Stopped: when it was asked to stop.
    """
    optimization, run = config.optimization, config.run
    log = MetricsLog(config, progress, enabled=accelerator.is_main_process)
    validation = Validation(pipeline, config, accelerator.device, log.show)
    started = time.perf_counter() - progress.seconds
    passes = optimization.gradient_accumulation_steps
    if progress.step == 0 and validation.due(0) and accelerator.is_main_process:
        validation.draw(0)
    asked = Request(0)
    for step in range(progress.step, optimization.max_train_steps):
        lr = learning_rate(optimization, step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for pass_index in range(step * passes, (step + 1) * passes):
            with accelerator.accumulate(unet):
                batch = objective.draw(
                    pass_index, accelerator.process_index, accelerator.num_processes
                )
                losses = objective.losses(unet, batch)
                accelerator.backward(losses.total)
                if accelerator.sync_gradients and optimization.max_grad_norm:
                    parameters = optimizer.param_groups[0]["params"]
                    accelerator.clip_grad_norm_(parameters, optimization.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                log.count(losses)
        if optimization.max_delta_norm is not None:
            project(pipeline.unet, optimization.max_delta_norm)
        progress = Progress(step + 1, time.perf_counter() - started)
        asked = control.asked(progress.step)
        log.finish_step(progress, lr, pipeline.unet, last=bool(asked & Request.ENDS))
        if accelerator.is_main_process:
            if validation.due(progress.step) or asked & Request.SAMPLE:
                validation.draw(progress.step)
            due = run.checkpointing_steps and progress.step % run.checkpointing_steps == 0
            if due or asked & (Request.SAVE | Request.ENDS):
                path = save_checkpoint(config, progress, pipeline.unet, optimizer, accelerator)
                logger.info("Checkpoint: %s", path)
        if asked & Request.ENDS:
            break
    log.close()
    if asked & Request.ENDS == Request.STOP and progress.step < optimization.max_train_steps:
        accelerator.wait_for_everyone()  # or a launcher would end the one that still writes
        last = optimization.max_train_steps
        logger.info("Stopped after step %d of %d; --resume latest continues.", progress.step, last)
        raise Stopped
    return progress


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
