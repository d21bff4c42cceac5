"""Teach a Stable Diffusion model a new concept from a few pictures (DreamBooth with LoLDU).

    accelerate launch trainer/train_dreambooth_loldu.py --instance_data_dir pictures \
        --instance_prompt "a photo of sks dog" --output_dir runs/dog

`python -m trainer` is the same command; `--help` explains every option.
"""

import dataclasses
import logging
import sys
from datetime import timedelta
from pathlib import Path

if not __package__:  # run by its path: import from the repository, not from this file's folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from diffusers import DiffusionPipeline
from tqdm.contrib.logging import logging_redirect_tqdm

from loldu.base.families import network_of
from loldu.base.open import load_pipeline, weights_digest
from loldu.errors import LoLDUError
from loldu.pictures.folder import CaptionedImage, digest
from trainer.command import run
from trainer.methods.method import add_trainables, learn_words
from trainer.options.concepts import SINGLE, concept_configs
from trainer.options.config import Config
from trainer.results.hub import open_repositories, push
from trainer.results.metadata import Training
from trainer.results.records import open_output_dir, refuse_another_run
from trainer.results.write import write_result
from trainer.training.cache import Cache, build_cache, leave_device
from trainer.training.checkpoint import Inputs, Progress, find_checkpoint, load_checkpoint
from trainer.training.compilation import compile_network
from trainer.training.control import Control
from trainer.training.ema import EMA
from trainer.training.fit import Run, as_saved, fit
from trainer.training.instances import find_all_instances, report
from trainer.training.objective import Denoiser, DreamBooth, Objective
from trainer.training.optimizers import make_optimizer, optimizer_class
from trainer.training.prior import class_images
from trainer.training.scorer import Scorer
from trainer.training.scores import LiveScores, live_scores, scores_at
from trainer.training.tracking import Trackers, check_trackers

logger = logging.getLogger("trainer")

DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
WHILE_THE_FIRST_DRAWS = timedelta(hours=12)
"""How long the other processes wait for its class and validation pictures; NCCL's ten minutes are
too few."""


def main(config: Config, scorer: Scorer | None = None) -> None:
    """Train a concept, or several at once, from the pictures to the concept files.

    Args:
        config: the options.
        scorer: what measures the validation pictures, where they are scored; `eval` unless given.

    Raises:
        LoLDUError: for what the person can put right.
        Stopped: when it was asked to stop.
    """
    # ------------------------------------------------------------ what can fail fast, fails first
    optimization = config.optimization
    optimizer_class(optimization.optimizer)
    accelerator = make_accelerator(config)
    configs = concept_configs(config)
    instances = find_all_instances(configs)
    checkpoint = find_checkpoint(config)
    refuse_another_run(config.run, checkpoint)
    scores: dict[str, LiveScores] = {}
    if accelerator.is_main_process:
        check_trackers(config.run)
        scores = live_scores(config, configs, instances, scorer, accelerator.device)
    repositories = open_repositories(configs) if accelerator.is_main_process else {}
    if checkpoint is None and accelerator.is_main_process:
        for name, own in configs.items():
            report(instances[name], own.instance, own.prior)
    control = Control(config.run, accelerator)

    # ------------------------------------------------------------------------- the frozen base
    pipeline = load_pipeline(
        config.base, torch_dtype=compute_dtype(config), device=accelerator.device
    )
    network, base = network_of(pipeline), weights_digest(pipeline)
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

    for of_concept in scores.values():
        of_concept.see_base(pipeline)

    # ---------------------------------------------- what is trained, in fp32, after the base's cast
    trained = add_trainables(pipeline, configs, words)
    leave_device(pipeline)
    objective = Objective(
        [DreamBooth(pipeline, caches[name], own) for name, own in configs.items()],
        trained,
        config,
    )
    if config.performance.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    optimizer = make_optimizer(optimization, trained.groups(optimization))
    denoiser = Denoiser(pipeline, trains_text=trained.trains_text)
    denoiser, optimizer = accelerator.prepare(denoiser, optimizer)
    compile_network(network, config.performance.compile)
    ema = EMA(trained.parameters(), optimization.ema_decay)
    progress = Progress()
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, inputs, trained, optimizer, ema, accelerator)
        logger.info("Resuming after step %d from %s", progress.step, checkpoint)

    # ------------------------------------------------------------------------------- training
    trainings = {
        name: Training(
            progress,
            sum(parameter.numel() for parameter in trained.parameters(name)),
            instances[name][0].caption,
            len(cache.instances),
            len(cache.classes),
        )
        for name, cache in caches.items()
    }
    for name, training in trainings.items():
        logger.info(
            "Training %s%s parameters (%s) on %d pictures and %d class pictures",
            "" if name == SINGLE else f"{name}: ",
            f"{training.parameters:,}",
            config.adapter.method,
            len(instances[name]),
            training.class_pictures,
        )
    if accelerator.is_main_process:
        open_output_dir(config, configs, checkpoint)
    trackers = Trackers(config, progress.step, enabled=accelerator.is_main_process)
    run = Run(
        config=config,
        configs=configs,
        inputs=inputs,
        pipeline=pipeline,
        trained=trained,
        ema=ema,
        accelerator=accelerator,
        control=control,
        trackers=trackers,
        trainings=trainings,
        scores=scores,
    )
    with logging_redirect_tqdm(), control.listening():
        progress = fit(run, denoiser, optimizer, objective, progress)

    # --------------------------------------------------------------------------------- result
    if accelerator.is_main_process:
        results: dict[str, list[str]] = {}
        for name, own in configs.items():
            measured = scores_at(own.run.output_dir, progress.step) if name in scores else None
            training = dataclasses.replace(trainings[name], progress=progress, scores=measured)
            device, repository = accelerator.device, repositories.get(name)
            with as_saved(run):
                results[name] = write_result(
                    own, name, pipeline, trained, training, device, repository
                )
        push(configs, repositories, results)
    accelerator.end_training()


def compute_dtype(config: Config) -> torch.dtype:
    """What the frozen base is held in; one that is itself trained is held in fp32."""
    if config.adapter.method == "dreambooth":
        return torch.float32
    return DTYPES[config.optimization.mixed_precision]


def make_accelerator(config: Config) -> Accelerator:
    """The device, the precision, and as many processes as `accelerate launch` started.

    Raises:
        LoLDUError: when the device cannot do the precision, or several processes not --on_oom.
    """
    precision = config.optimization.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise LoLDUError(
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
    if config.performance.on_oom == "adapt" and accelerator.num_processes > 1:
        raise LoLDUError(
            "--on_oom adapt works in one process; with several, give --gradient_checkpointing and "
            "a smaller --train_batch_size yourself."
        )
    logger.setLevel(logging.INFO if accelerator.is_main_process else logging.WARNING)
    return accelerator


def prepare_class_images(
    config: Config,
    own: Config,
    pipeline: DiffusionPipeline,
    base: str,
    accelerator: Accelerator,
) -> list[CaptionedImage]:
    """The class pictures of a concept, drawing those that are missing.

    Args:
        config: the run's options; concepts share class pictures in its folder.
        own: the concept's options.
        pipeline: the base.
        base: its digest.
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


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
