"""The steps of a run: gradients, update, and what is told, drawn, scored and saved on the way."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import DiffusionPipeline
from jaxtyping import Float
from PIL.Image import Image
from torch import Tensor, nn

from loldu.base.families import network_of
from loldu.errors import Stopped
from trainer.methods.method import Trained, save_result
from trainer.options.concepts import FOLDER, SINGLE
from trainer.options.config import Config
from trainer.results.metadata import Training, describe
from trainer.results.records import MetricsLog
from trainer.training.checkpoint import Inputs, Progress, save_checkpoint
from trainer.training.clock import Clock
from trainer.training.compilation import uncompiled
from trainer.training.control import Control, Request
from trainer.training.ema import EMA
from trainer.training.memory import MemoryLadder
from trainer.training.objective import Objective, lr_factor
from trainer.training.scorer import Wanted
from trainer.training.scores import LiveScores, scores_at
from trainer.training.tracking import Trackers
from trainer.training.validation import Validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """What a run has throughout.

    Attributes:
        config: the options.
        configs: those of every concept.
        inputs: what it is made from beside them.
        pipeline: the base, and on it what is trained.
        trained: what is trained.
        ema: its average over the last steps, if asked for.
        accelerator: device, precision and processes.
        control: what is asked of it while it trains.
        trackers: who is told of it, beside its own files.
        trainings: what a concept file tells of every concept, but progress and scores.
        scores: those of every concept, where validation is scored.
    """

    config: Config
    configs: dict[str, Config]
    inputs: Inputs
    pipeline: DiffusionPipeline
    trained: Trained
    ema: EMA
    accelerator: Accelerator
    control: Control
    trackers: Trackers
    trainings: dict[str, Training] = field(default_factory=dict)
    scores: dict[str, LiveScores] = field(default_factory=dict)


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
    adapt = run.config.performance.on_oom == "adapt"
    network = network_of(run.pipeline)
    ladder = MemoryLadder(network, trained, accelerator, objective.rows, adapt=adapt)
    is_main = accelerator.is_main_process
    log = MetricsLog(run.configs, trained, run.trackers, progress, enabled=is_main)
    clock = Clock(progress.seconds)
    asked = Request(0)
    for scores in run.scores.values():
        scores.resume(progress.step)
    if progress.step == 0:
        validate(run, 0, asked, clock)
    with closing(log):
        for step in range(progress.step, optimization.max_train_steps):
            factor = lr_factor(optimization, step)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            passes = partial(accumulate_gradients, denoiser, objective, accelerator, ladder, step)
            log.count(ladder.take(passes))
            if optimization.max_grad_norm:
                accelerator.unscale_gradients(optimizer)
                for parameters in of_concept:
                    nn.utils.clip_grad_norm_(parameters, optimization.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            if optimization.max_delta_norm is not None:
                trained.project(optimization.max_delta_norm)
            run.ema.update(step + 1)
            progress = Progress(step + 1, clock.seconds)
            asked = run.control.asked(progress.step)
            log.finish_step(progress, rates[0] * factor, last=bool(asked & Request.ENDS))
            validate(run, progress.step, asked, clock)
            every = run.config.run.checkpointing_steps
            due = every and progress.step % every == 0
            if is_main and (due or asked & (Request.SAVE | Request.ENDS)):
                with clock.stopped():
                    save_checkpoint(
                        run.config,
                        run.inputs,
                        progress,
                        trained,
                        optimizer,
                        run.ema,
                        accelerator,
                        partial(save_concepts, run, progress),
                    )
            if asked & Request.ENDS:
                break
    run.trackers.finish()
    if asked & Request.ENDS == Request.STOP and progress.step < optimization.max_train_steps:
        accelerator.wait_for_everyone()  # or a launcher would end the one that still writes
        logger.info("Stopped after step %d; --resume latest continues.", progress.step)
        raise Stopped
    return progress


def accumulate_gradients(
    denoiser: nn.Module,
    objective: Objective,
    accelerator: Accelerator,
    ladder: MemoryLadder,
    step: int,
) -> Float[Tensor, "concepts 3"]:
    """Every forward and backward pass of a step; the means of their losses, by concept."""
    passes = accelerator.gradient_accumulation_steps
    losses: list[Tensor] = []
    for pass_index in range(step * passes, (step + 1) * passes):
        with accelerator.accumulate(denoiser):
            batches = objective.draw(
                pass_index, accelerator.process_index, accelerator.num_processes
            )
            for rows in ladder.slices():
                parts = objective.losses(denoiser, batches, rows)
                accelerator.backward(sum(part.total for part in parts))
                losses.append(torch.stack([part.values() for part in parts]))
    return torch.stack(losses).sum(dim=0) / passes


@contextmanager
def as_saved(run: Run) -> Iterator[None]:
    """What is trained as the result has it: averaged, and inside the ball all the same."""
    optimization = run.config.optimization
    with run.ema.applied():
        if optimization.ema_decay is not None and optimization.max_delta_norm is not None:
            # A mean of scales times a mean of z is not a mean of deltas: it can lie outside.
            run.trained.project(optimization.max_delta_norm)
        yield


def validate(run: Run, step: int, asked: Request, clock: Clock) -> None:
    """Draw every concept's validation prompts when they are due or asked for, off the clock."""
    every, last = run.config.run.validation_steps, run.config.optimization.max_train_steps
    ends = step == last or Request.FINISH in asked
    due = every and (ends or step % every == 0)
    if not run.accelerator.is_main_process or not (due or Request.SAMPLE in asked):
        return
    for name, own in run.configs.items():
        validation = Validation(run.pipeline, run.trained, name, own, run.accelerator.device)
        with clock.stopped(), as_saved(run), uncompiled():
            drawn = validation.draw(step)
            if due and (scores := run.scores.get(name)):
                measure(run, name, scores, step, validation.drawn)
        if drawn is not None:
            run.trackers.show(name, drawn, step)


def measure(
    run: Run, name: str, scores: LiveScores, step: int, drawn: Mapping[Wanted, Image]
) -> None:
    """Score a concept as it is now, `drawn` in part already, and keep it if it was never better."""
    with run.trained.only(name):
        measured = scores.measure(run.pipeline, step, run.accelerator.device, drawn)
    run.trackers.log(name, measured, step)

    scores.keep_best(step, measured, partial(save_concept, run, name, Progress(step), measured))


def save_concepts(run: Run, progress: Progress, folder: Path) -> None:
    """Write every concept as the result would be if the run ended here; they are small files.

    The files of the other methods are not: their checkpoints hold nothing but the run's state.
    """
    if run.config.adapter.method not in ("loldu", "svfit"):
        return
    with as_saved(run):
        for name, own in run.configs.items():
            of_concept = folder if name == SINGLE else folder / FOLDER / name
            of_concept.mkdir(parents=True, exist_ok=True)
            measured = scores_at(own.run.output_dir, progress.step) if name in run.scores else None
            save_concept(run, name, progress, measured, of_concept)


def save_concept(
    run: Run, name: str, progress: Progress, scores: dict[str, float] | None, folder: Path
) -> None:
    """Write what is trained now into a folder, as the file of a result."""
    own = run.configs[name]
    there = dataclasses.replace(own, run=dataclasses.replace(own.run, output_dir=folder))
    training = dataclasses.replace(run.trainings[name], progress=progress, scores=scores)
    save_result(run.pipeline, run.trained, name, there, describe(own, training, run.pipeline))
