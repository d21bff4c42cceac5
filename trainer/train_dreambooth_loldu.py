"""Teach a Stable Diffusion model a new concept from a few pictures (DreamBooth with LoLDU).

    accelerate launch trainer/train_dreambooth_loldu.py --instance_data_dir pictures \
        --instance_prompt "a photo of sks dog" --output_dir runs/dog

`python -m trainer` is the same command; `--help` explains every option.
"""

import dataclasses
import hashlib
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

if not __package__:  # run by its path: import from the repository, not from this file's folder
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from diffusers import DiffusionPipeline
from torch import nn
from torch.optim import Optimizer
from tqdm.contrib.logging import logging_redirect_tqdm

from loldu.base.families import network_of
from loldu.base.open import weights_digest
from loldu.errors import LoLDUError
from loldu.pictures.folder import CaptionedImage, digest
from trainer.command import run
from trainer.methods.loldu import read_starts, start_from_concepts
from trainer.methods.method import add_trainables
from trainer.methods.textual_inversion import learn_words
from trainer.methods.trained import Trained
from trainer.options.concepts import SINGLE, concept_configs
from trainer.options.config import Config
from trainer.results.hub import open_repositories, push
from trainer.results.lock import locked
from trainer.results.metadata import Training
from trainer.results.output_dir import open_output_dir, refuse_another_run
from trainer.results.result import write_result
from trainer.training.base import load_base
from trainer.training.buckets import BucketedObjective, bucket_caches
from trainer.training.cache import Cache, build_cache, leave_device
from trainer.training.checkpoint import Inputs, Progress, find_checkpoint, load_checkpoint
from trainer.training.control import Control
from trainer.training.ema import EMA
from trainer.training.fit import Run, as_saved, fit
from trainer.training.held_out import HeldOutLoss
from trainer.training.instances import find_all_instances, report, split
from trainer.training.objective import Denoiser, DreamBooth, Objective
from trainer.training.optimizers import make_optimizer, optimizer_class
from trainer.training.prior import class_images, own_pictures
from trainer.training.scores import LiveScores, Scorer, live_scores, optional_scorer, scores_at
from trainer.training.stages import BASE_PICTURES, ENCODING, announce
from trainer.training.tracking import check_trackers, start_trackers

logger = logging.getLogger("trainer")


def main(config: Config, scorer: Scorer | None = None) -> None:
    """Train a concept, or several at once, from the pictures to the concept files.

    Args:
        config: Options of the run.
        scorer: Scorer of the validation pictures, if they are scored; unless given, `eval`'s.

    Raises:
        LoLDUError: If something is wrong that the person can correct.
        Stopped: If a request ended the run before its last step.
    """
    if config.fleet.on is not None:
        raise LoLDUError("--on starts its own processes: use loldu-train, not accelerate launch.")
    optimizer_class(config.optimization.optimizer)
    accelerator = make_accelerator(config)
    instances = find_all_instances(concept_configs(config))
    if scorer is None and accelerator.is_main_process:
        config, scorer = optional_scorer(config, accelerator.device)
    configs = concept_configs(config)
    with locked(config.run.output_dir) if accelerator.is_main_process else nullcontext():
        train(config, configs, instances, scorer, accelerator)


def train(
    config: Config,
    configs: dict[str, Config],
    instances: dict[str, list[CaptionedImage]],
    scorer: Scorer | None,
    accelerator: Accelerator,
) -> None:
    """Train all concepts, in an output folder into which no other run writes."""
    # --------------------------------------------- check everything that needs no base model yet
    explain_warmup(config)
    checkpoint = find_checkpoint(config)
    if checkpoint is None:
        read_starts(configs)
    if accelerator.is_main_process:
        refuse_another_run(config, configs, checkpoint)
    scores, repositories = check_outputs(config, configs, instances, scorer, accelerator)
    if checkpoint is None and accelerator.is_main_process:
        report_pictures(configs, instances)
    control = Control(config.run, accelerator)

    # ----------------------------------------------------------- load the base, and teach it words
    pipeline = load_base(configs, accelerator.device)
    base = weights_digest(pipeline)
    words = learn_words(pipeline, configs)

    # ---------------------------------------------------------------- encode pictures and prompts
    caches, inputs = encode_data(config, configs, instances, pipeline, base, accelerator)
    if scores:
        announce(BASE_PICTURES)
    for of_concept in scores.values():
        of_concept.see_base(pipeline)

    # ---------------------------------------------- add what is trained, in fp32, and its optimizer
    trained = add_trainables(pipeline, configs, words)
    if checkpoint is None:
        start_from_concepts(pipeline, configs, instances)
    leave_device(pipeline)
    objective, held_out = make_objective(config, configs, caches, pipeline, trained)
    optimizer = make_optimizer(config.optimization, trained.groups(config.optimization))
    ema = EMA(trained.parameters(), config.optimization.ema_decay)
    denoiser, optimizer = prepare(config, pipeline, trained, optimizer, accelerator)
    progress = Progress()
    if checkpoint is not None:
        progress = load_checkpoint(checkpoint, inputs, trained, optimizer, ema, accelerator)

    # -------------------------------------------------------------------------------------- train
    trainings = describe_trainings(configs, instances, caches, trained, progress)
    about = trainings, scores, held_out
    run = Run(config, configs, inputs, pipeline, trained, ema, accelerator, control, *about)
    if accelerator.is_main_process:
        open_output_dir(config, configs, checkpoint, progress.step)
    start_trackers(accelerator, config, progress.step)
    with logging_redirect_tqdm(), control.listening():
        progress = fit(run, denoiser, optimizer, objective, progress)

    # -------------------------------------------------------------------- write and push the result
    push(configs, repositories, write_results(run, progress, repositories))
    accelerator.end_training()


def make_accelerator(config: Config) -> Accelerator:
    """Return the accelerator: device, precision, and the processes of `accelerate launch`.

    Raises:
        LoLDUError: If the device cannot compute in --mixed_precision, or --on_oom adapt is given
            to several processes.
    """
    if config.performance.deterministic:
        use_deterministic_algorithms()
    precision = config.optimization.mixed_precision
    if precision == "fp16" and not torch.cuda.is_available():
        raise LoLDUError(
            "--mixed_precision fp16 needs a CUDA GPU and there is none; use --mixed_precision no."
        )
    accelerator = Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=config.optimization.gradient_accumulation_steps,
        kwargs_handlers=[
            # Frozen buffers are the same in every process: nothing to broadcast each step.
            DistributedDataParallelKwargs(broadcast_buffers=False),
            # The other processes wait while the main process draws class and validation pictures;
            # NCCL's ten minutes are too few.
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


def use_deterministic_algorithms() -> None:
    """Let torch use only algorithms that give the same bits each time, until the process ends.

    cuBLAS reads its variable when it starts, so this must come before the first use of a GPU.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def check_outputs(
    config: Config,
    configs: Mapping[str, Config],
    instances: Mapping[str, Sequence[CaptionedImage]],
    scorer: Scorer | None,
    accelerator: Accelerator,
) -> tuple[dict[str, LiveScores], dict[str, str]]:
    """Check trackers, scorer and repositories in the main process, before any work is done.

    Returns:
        Scores and repository names by concept.
    """
    if not accelerator.is_main_process:
        return {}, {}
    check_trackers(config.run)
    scores = live_scores(config, configs, instances, scorer, accelerator.device)
    return scores, open_repositories(configs)


def report_pictures(
    configs: Mapping[str, Config], instances: Mapping[str, Sequence[CaptionedImage]]
) -> None:
    """Print what the doctor finds in the pictures of every concept."""
    for name, own in configs.items():
        report(instances[name], own.instance, own.prior)


def explain_warmup(config: Config) -> None:
    """Log what a warm-up that outlasts the run means."""
    warmup, steps = config.optimization.lr_warmup_steps, config.optimization.max_train_steps
    if warmup > steps:
        logger.info(
            "--lr_warmup_steps %d outlasts --max_train_steps %d: the learning rate rises until the "
            "end and reaches %.0f%% of its value.",
            *(warmup, steps, 100 * steps / warmup),
        )


def encode_data(
    config: Config,
    configs: Mapping[str, Config],
    instances: Mapping[str, Sequence[CaptionedImage]],
    pipeline: DiffusionPipeline,
    base: str,
    accelerator: Accelerator,
) -> tuple[dict[str, list[Cache]], Inputs]:
    """Draw missing class pictures; encode the pictures and prompts of every concept.

    Args:
        config: Options of the run.
        configs: Options of every concept.
        instances: Pictures of every concept.
        pipeline: The base.
        base: Digest of its weights.
        accelerator: Processes, which wait for the drawn pictures.

    Returns:
        The encoded data by concept, and digests of everything that decides it.
    """
    inputs: Inputs = {"The base": base, "The number of processes": accelerator.num_processes}
    if (path := config.adapter.adapter_config) is not None:
        inputs["The adapter config"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    caches: dict[str, list[Cache]] = {}
    for name, own in configs.items():
        classes: list[CaptionedImage] = []
        pictures, held_out = split(instances[name], own)
        if own.prior.with_prior_preservation and own.prior.class_pictures == "concept":
            classes = own_pictures(pictures, own)
        elif own.prior.with_prior_preservation:
            with accelerator.main_process_first():  # the other processes find the pictures drawn
                classes = class_images(
                    pipeline,
                    own.prior,
                    config.run.output_dir,  # concepts share class pictures
                    base=base,
                    resolution=own.instance.resolution,
                    seed=own.optimization.seed,
                    num_inference_steps=own.run.num_inference_steps,
                    guidance_scale=own.run.guidance_scale,
                )
        announce(ENCODING)
        whose = "" if name == SINGLE else f" of {name}"
        inputs[f"A picture or caption{whose}"] = digest([*instances[name], *classes])
        if own.instance.aspect_buckets:
            caches[name] = bucket_caches(pipeline, pictures, classes, own, held_out)
            continue
        cache = build_cache(
            pipeline,
            pictures,
            classes,
            own.instance,
            seed=config.optimization.seed,
            held_out=held_out,
            captions=own.captions,
        )
        caches[name] = [cache]
    return caches, inputs


def make_objective(
    config: Config,
    configs: Mapping[str, Config],
    caches: Mapping[str, Sequence[Cache]],
    pipeline: DiffusionPipeline,
    trained: Trained,
) -> tuple[Objective, HeldOutLoss | None]:
    """Return the objective of all concepts, and their held-out loss if it is measured."""
    concepts = {
        name: [DreamBooth(pipeline, cache, own) for cache in caches[name]]
        for name, own in configs.items()
    }
    if config.instance.aspect_buckets:
        objective = BucketedObjective(concepts, trained, config)
    else:
        objective = Objective([whole for (whole,) in concepts.values()], trained, config)
    return objective, HeldOutLoss(concepts, trained) if config.scores.held_out_steps else None


def prepare(
    config: Config,
    pipeline: DiffusionPipeline,
    trained: Trained,
    optimizer: Optimizer,
    accelerator: Accelerator,
) -> tuple[nn.Module, Any]:
    """Return network and optimizer as accelerate wraps them; compile the network if asked to."""
    network = network_of(pipeline)
    if config.performance.gradient_checkpointing:
        network.enable_gradient_checkpointing()
    denoiser = Denoiser(pipeline, trains_text=trained.trains_text)
    prepared = accelerator.prepare(denoiser, optimizer)
    if config.performance.compile == "blocks":  # in place: modules and weights keep their names
        network.compile_repeated_blocks()
    elif config.performance.compile == "unet":
        network.compile()
    return prepared


def describe_trainings(
    configs: Mapping[str, Config],
    instances: Mapping[str, Sequence[CaptionedImage]],
    caches: Mapping[str, Sequence[Cache]],
    trained: Trained,
    progress: Progress,
) -> dict[str, Training]:
    """Return and log the facts that every concept's file will have."""
    trainings: dict[str, Training] = {}
    for name, own in configs.items():
        training = trainings[name] = Training(
            progress,
            parameters=sum(parameter.numel() for parameter in trained.parameters(name)),
            caption=instances[name][0].caption,
            pictures=sum(len(cache.instances) for cache in caches[name]),
            class_pictures=sum(len(cache.classes) for cache in caches[name]),
        )
        logger.info(
            "Training %s%s parameters (%s) on %d pictures and %d class pictures",
            "" if name == SINGLE else f"{name}: ",
            f"{training.parameters:,}",
            own.adapter.method,
            len(instances[name]) - own.scores.held_out_pictures,
            training.class_pictures,
        )
    return trainings


def write_results(
    run: Run, progress: Progress, repositories: Mapping[str, str]
) -> dict[str, list[str]]:
    """Write the result of every concept in the main process, and return its files to push."""
    files: dict[str, list[str]] = {}
    if not run.accelerator.is_main_process:
        return files
    for name, own in run.configs.items():
        scores = scores_at(own.run.output_dir, progress.step) if name in run.scores else None
        training = dataclasses.replace(run.trainings[name], progress=progress, scores=scores)
        device, repository = run.accelerator.device, repositories.get(name)
        with as_saved(run):
            files[name] = write_result(
                own, name, run.pipeline, run.trained, training, device, repository
            )
    return files


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], main))
