"""Teach a Stable Diffusion model a new concept from a few pictures (DreamBooth with LoLDU).

    accelerate launch trainer/train_dreambooth_loldu.py --instance_data_dir pictures \
        --instance_prompt "a photo of sks dog" --output_dir runs/dog

`python -m trainer` is the same command; `--help` explains every option.
"""

import dataclasses
import logging
import sys
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: import from the repository, not from this file's folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from diffusers import StableDiffusionPipeline
from torch import nn
from torch.optim import AdamW
from tqdm.contrib.logging import logging_redirect_tqdm

from trainer.__main__ import run
from trainer.base import fingerprint, load_pipeline
from trainer.base_record import public_base
from trainer.cache import Cache, build_cache, leave_device
from trainer.checkpoint import (
    Inputs,
    Progress,
    find_checkpoint,
    load_checkpoint,
    save_checkpoint,
)
from trainer.concepts import SINGLE, concept_configs
from trainer.config import Config, sections
from trainer.control import Control, Request
from trainer.doctor import report
from trainer.errors import Stopped, TrainerError
from trainer.instances import CaptionedImage, digest, find_all_instances
from trainer.loop import Denoiser, DreamBooth, Objective, lr_factor
from trainer.methods import Trained, add_trainables, learn_words, save_result
from trainer.prior import class_images
from trainer.records import (
    MetricsLog,
    open_output_dir,
    refuse_another_run,
    size_bytes,
    write_summary,
)
from trainer.tracking import Trackers, refuse_missing_trackers
from trainer.validation import Validation

logger = logging.getLogger("trainer")

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(config: Config) -> None:
    """Train a concept, or several at once, from the pictures to the concept files.

    Raises:
        TrainerError: for what the person can put right.
        Stopped: when it was asked to stop.
    """
    # ------------------------------------------------------------ what can fail fast, fails first
    optimization = config.optimization
    accelerator = make_accelerator(config)
    configs = concept_configs(config)
    instances = find_all_instances(configs)
    checkpoint = find_checkpoint(config)
    refuse_another_run(config.run, checkpoint)
    refuse_missing_trackers(config.run)
    control = Control(config.run, accelerator)
    if checkpoint is None and accelerator.is_main_process:
        for name, own in configs.items():
            report(instances[name], own.instance, own.prior)

    # ------------------------------------------------------------------------- the frozen base
    pipeline = load_pipeline(
        **dataclasses.asdict(config.base),
        torch_dtype=compute_dtype(config),
        device=accelerator.device,
    )
    base = fingerprint(pipeline)
    words = learn_words(pipeline, configs)

    # ------------------------------------------- pictures, class pictures, their latents, prompts
    inputs: Inputs = {"The base": base, "The number of processes": accelerator.num_processes}
    caches: dict[str, Cache] = {}
    for name, own in configs.items():
        classes = prepare_class_images(config, own, pipeline, base, accelerator)
        pictures = [*instances[name], *classes]
        whose = "" if name == SINGLE else f" of {name}"
        inputs[f"A picture or caption{whose}"] = digest(pictures)
        caches[name] = build_cache(
            pipeline, instances[name], classes, own.instance, seed=optimization.seed
        )

    # ---------------------------------------------- what is trained, in fp32, after the base's cast
    trained = add_trainables(pipeline, configs, words)
    leave_device(pipeline)
    objective = Objective(
        [DreamBooth(pipeline.scheduler, caches[name], own) for name, own in configs.items()],
        trained,
        config,
    )
    text_encoder = pipeline.text_encoder if trained.trains_text else None
    optimizer = AdamW(
        trained.groups(optimization), weight_decay=optimization.adam_weight_decay, fused=True
    )
    denoiser, optimizer = accelerator.prepare(Denoiser(pipeline.unet, text_encoder), optimizer)
    progress = Progress()
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, inputs, trained, optimizer, accelerator)
        logger.info("Resuming after step %d from %s", progress.step, checkpoint)

    # ------------------------------------------------------------------------------- training
    counts = {
        name: sum(parameter.numel() for parameter in trained.parameters(name)) for name in configs
    }
    for name, cache in caches.items():
        logger.info(
            "Training %s%s parameters (%s) on %d pictures and %d class pictures",
            "" if name == SINGLE else f"{name}: ",
            f"{counts[name]:,}",
            config.adapter.method,
            len(instances[name]),
            len(cache.classes),
        )
    if accelerator.is_main_process:
        open_output_dir(config, configs, checkpoint)
    trackers = Trackers(config, progress.step, enabled=accelerator.is_main_process)
    run = Run(config, configs, inputs, pipeline, trained, accelerator, control, trackers)
    with logging_redirect_tqdm(), control.listening():
        progress = fit(run, denoiser, optimizer, objective, progress)

    # --------------------------------------------------------------------------------- result
    if accelerator.is_main_process:
        for name, own in configs.items():
            result = save_result(pipeline, trained, name, own, describe(own, progress))
            write_summary(own.run.output_dir, result, counts[name], progress)
            logger.info("Saved %s (%s bytes)", result, f"{size_bytes(result):,}")
    accelerator.end_training()


@dataclass(frozen=True)
class Run:
    """What a run has throughout.

    Attributes:
        config: the options.
        configs: those of every concept.
        inputs: what it is made from beside them.
        pipeline: the base, and on it what is trained.
        trained: what is trained.
        accelerator: device, precision and processes.
        control: what is asked of it while it trains.
        trackers: who is told of it, beside its own files.
    """

    config: Config
    configs: dict[str, Config]
    inputs: Inputs
    pipeline: StableDiffusionPipeline
    trained: Trained
    accelerator: Accelerator
    control: Control
    trackers: Trackers


def compute_dtype(config: Config) -> torch.dtype:
    """What the frozen base is held in; one that is itself trained is held in fp32."""
    if config.adapter.method == "dreambooth":
        return torch.float32
    return DTYPES[config.optimization.mixed_precision]


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
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # The others wait while the main process draws pictures, for longer than the usual
            # ten minutes.
            InitProcessGroupKwargs(timeout=timedelta(hours=12)),
        ],
    )
    logger.setLevel(logging.INFO if accelerator.is_main_process else logging.WARNING)
    return accelerator


def prepare_class_images(
    config: Config,
    own: Config,
    pipeline: StableDiffusionPipeline,
    base: str,
    accelerator: Accelerator,
) -> list[CaptionedImage]:
    """The class pictures of a concept, drawing those that are missing.

    Args:
        config: the run's options; concepts share class pictures in its folder.
        own: the concept's options.
        pipeline: the base.
        base: its fingerprint.
        accelerator: for the processes to wait for each other.
    """
    if not own.prior.with_prior_preservation:
        return []
    with accelerator.main_process_first():  # the others find them drawn
        return class_images(
            pipeline,
            own.prior,
            config.run.output_dir,
            base=base,
            resolution=own.instance.resolution,
            seed=own.optimization.seed,
            num_inference_steps=own.run.num_inference_steps,
            guidance_scale=own.run.guidance_scale,
        )


def fit(
    run: Run,
    denoiser: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    progress: Progress,
) -> Progress:
    """Take the remaining steps; `denoiser` is as accelerate wraps it.

    Raises:
        Stopped: when it was asked to stop.
    """
    optimization, accelerator, trained = run.config.optimization, run.accelerator, run.trained
    of_concept = [trained.parameters(name) for name in run.configs]
    rates = [group["lr"] for group in trained.groups(optimization)]
    log = MetricsLog(
        run.configs, trained, run.trackers, progress, enabled=accelerator.is_main_process
    )
    started = time.perf_counter() - progress.seconds
    passes = optimization.gradient_accumulation_steps
    asked = Request(0)
    if progress.step == 0:
        validate(run, 0, asked)
    for step in range(progress.step, optimization.max_train_steps):
        factor = lr_factor(optimization, step)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        for pass_index in range(step * passes, (step + 1) * passes):
            with accelerator.accumulate(denoiser):
                batches = objective.draw(
                    pass_index, accelerator.process_index, accelerator.num_processes
                )
                losses = objective.losses(denoiser, batches)
                accelerator.backward(sum(loss.total for loss in losses))
                if accelerator.sync_gradients and optimization.max_grad_norm:
                    accelerator.unscale_gradients(optimizer)
                    for parameters in of_concept:
                        nn.utils.clip_grad_norm_(parameters, optimization.max_grad_norm)
                optimizer.step()
                optimizer.zero_grad()
                log.count(losses)
        if optimization.max_delta_norm is not None:
            trained.project(optimization.max_delta_norm)
        progress = Progress(step + 1, time.perf_counter() - started)
        asked = run.control.asked(progress.step)
        log.finish_step(progress, rates[0] * factor, last=bool(asked & Request.ENDS))
        validate(run, progress.step, asked)
        every = run.config.run.checkpointing_steps
        due = every and progress.step % every == 0
        if accelerator.is_main_process and (due or asked & (Request.SAVE | Request.ENDS)):
            save_checkpoint(run.config, run.inputs, progress, trained, optimizer, accelerator)
        if asked & Request.ENDS:
            break
    log.close()
    run.trackers.finish()
    if asked & Request.ENDS == Request.STOP and progress.step < optimization.max_train_steps:
        accelerator.wait_for_everyone()  # or a launcher would end the one that still writes
        logger.info("Stopped after step %d; --resume latest continues.", progress.step)
        raise Stopped
    return progress


def validate(run: Run, step: int, asked: Request) -> None:
    """Draw every concept's validation prompts when they are due or asked for."""
    every, last = run.config.run.validation_steps, run.config.optimization.max_train_steps
    ends = step == last or Request.FINISH in asked
    due = every and (ends or step % every == 0)
    if not run.accelerator.is_main_process or not (due or Request.SAMPLE in asked):
        return
    for name, own in run.configs.items():
        validation = Validation(run.pipeline, run.trained, name, own, run.accelerator.device)
        drawn = validation.draw(step)
        if drawn is not None:
            run.trackers.show(name, drawn, step)


def describe(config: Config, progress: Progress) -> dict[str, Any]:
    """What the concept file tells about its making; where things lay is nobody's business."""
    told = sections(config)
    return {
        "base": public_base(config.base),
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
