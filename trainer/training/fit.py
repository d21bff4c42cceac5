"""The training loop: gradients, updates, logs, validation pictures, scores and checkpoints."""

import dataclasses
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
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
from trainer.methods.method import method_named, save_result
from trainer.methods.trained import Trained
from trainer.options.concepts import FOLDER, SINGLE
from trainer.options.config import Config
from trainer.results.metadata import Training, called_by, describe
from trainer.results.metrics_log import MetricsLog
from trainer.training.checkpoint import Inputs, Progress, save_checkpoint
from trainer.training.control import Control, Request
from trainer.training.ema import EMA
from trainer.training.held_out import HeldOutLoss
from trainer.training.memory import MemoryLadder
from trainer.training.objective import Objective
from trainer.training.optimizers import lr_factor
from trainer.training.scores import LiveScores, scores_at
from trainer.training.scoring_plan import PromptSeed
from trainer.training.stages import BASE_PICTURES, announce
from trainer.training.tracking import track, track_sheet
from trainer.training.validation import Validation

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """Everything that stays the same from the first step of a run to the last.

    Attributes:
        config: Options of the run.
        configs: Options of every concept.
        inputs: Digests of what the run is made from beside its options.
        pipeline: The base, with what is trained on it.
        trained: What is trained.
        ema: Average of what is trained, if the options ask for one.
        accelerator: Device, precision, processes and trackers.
        control: Requests that arrive while the run trains.
        trainings: Facts for the concept file of every concept; progress and scores come later.
        scores: Scores of every concept, if validation pictures are scored.
        held_out: Losses on held-out pictures, if they are measured.
    """

    config: Config
    configs: dict[str, Config]
    inputs: Inputs
    pipeline: DiffusionPipeline
    trained: Trained
    ema: EMA
    accelerator: Accelerator
    control: Control
    trainings: dict[str, Training] = field(default_factory=dict)
    scores: dict[str, LiveScores] = field(default_factory=dict)
    held_out: HeldOutLoss | None = None


class Clock:
    """Seconds of training, over all starts of a run.

    Gradients, updates and log lines count. Loading, validation pictures, scores and checkpoints
    do not count, nor do steps that were lost to a kill.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        """Continue from the seconds of earlier starts."""
        self._started = time.perf_counter() - seconds

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return time.perf_counter() - self._started

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the clock inside the block."""
        if torch.cuda.is_available():  # steps may still be running on the GPU
            torch.cuda.synchronize()
        before = self.seconds
        try:
            yield
        finally:
            self._started = time.perf_counter() - before


def fit(
    run: Run,
    denoiser: nn.Module,
    optimizer: torch.optim.Optimizer,
    objective: Objective,
    progress: Progress,
) -> Progress:
    """Take the remaining steps.

    Args:
        run: The run.
        denoiser: Network, and text encoders if they are trained, as accelerate wraps them.
        optimizer: Optimizer, as accelerate wraps it.
        objective: Batches and losses of all concepts.
        progress: Steps already taken.

    Raises:
        Stopped: If a request ended the run before its last step.
    """
    optimization, accelerator, trained = run.config.optimization, run.accelerator, run.trained
    of_concepts = [trained.parameters(name) for name in run.configs]
    rates = [group["lr"] for group in trained.groups(optimization)]
    adapt = run.config.performance.on_oom == "adapt"
    network = network_of(run.pipeline)
    ladder = MemoryLadder(network, trained, accelerator, objective.rows, adapt=adapt)
    log = MetricsLog(run.configs, trained, accelerator, progress)
    clock = Clock(progress.seconds)
    asked = Request(0)
    for scores in run.scores.values():
        scores.resume(progress.step)
    if progress.step == 0:
        announce(BASE_PICTURES)
        validate(run, 0, asked, clock)
        log.start(measure_held_out(run, denoiser, 0, clock) or {})
    with closing(log):
        for step in range(progress.step, optimization.max_train_steps):
            factor = lr_factor(optimization, step)
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            passes = partial(accumulate_gradients, denoiser, objective, accelerator, ladder, step)
            log.count(ladder.take(passes))
            update(run, optimizer, of_concepts, step)
            progress = Progress(step + 1, clock.seconds)
            asked = run.control.asked(progress.step)
            unseen = measure_held_out(run, denoiser, progress.step, clock)
            log.finish_step(progress, rates[0] * factor, unseen, last=bool(asked & Request.ENDS))
            validate(run, progress.step, asked, clock)
            checkpoint(run, optimizer, progress, asked, clock)
            if asked & Request.ENDS:
                break
    if asked & Request.ENDS == Request.STOP and progress.step < optimization.max_train_steps:
        accelerator.wait_for_everyone()  # or a launcher would end the process that still writes
        accelerator.end_training()
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
    """Run every forward and backward pass of a step, and return the mean losses by concept."""
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


def update(
    run: Run,
    optimizer: torch.optim.Optimizer,
    of_concepts: Sequence[Sequence[nn.Parameter]],
    step: int,
) -> None:
    """Clip every concept's gradients, take the optimizer's step, project, and average."""
    optimization = run.config.optimization
    if optimization.max_grad_norm:
        run.accelerator.unscale_gradients(optimizer)
        for parameters in of_concepts:
            nn.utils.clip_grad_norm_(parameters, optimization.max_grad_norm)
    optimizer.step()
    optimizer.zero_grad()
    if optimization.max_delta_norm is not None:
        run.trained.project(optimization.max_delta_norm)
    run.ema.update(step + 1)


@contextmanager
def as_saved(run: Run) -> Iterator[None]:
    """Inside the block, parameters are as in the result: averaged, then projected."""
    optimization = run.config.optimization
    with run.ema.applied():
        if optimization.ema_decay is not None and optimization.max_delta_norm is not None:
            # A mean of scales times a mean of z is not a mean of deltas: it can leave the ball.
            run.trained.project(optimization.max_delta_norm)
        yield


def validate(run: Run, step: int, asked: Request, clock: Clock) -> None:
    """Draw every concept's validation prompts if they are due or asked for, off the clock."""
    every, last = run.config.run.validation_steps, run.config.optimization.max_train_steps
    ends = step == last or Request.FINISH in asked
    due = every and (ends or step % every == 0)
    if not run.accelerator.is_main_process or not (due or Request.SAMPLE in asked):
        return
    uncompiled = partial(torch.compiler.set_stance, "force_eager")  # few pictures, no new graphs
    for name, own in run.configs.items():
        validation = Validation(run.pipeline, run.trained, name, own, run.accelerator.device)
        with clock.stopped(), as_saved(run), uncompiled():
            sheet = validation.draw(step)
            if due and (scores := run.scores.get(name)):
                measure(run, name, scores, step, validation.drawn)
        if sheet is not None:
            track_sheet(run.accelerator, name, sheet, step)


def measure_held_out(
    run: Run, denoiser: nn.Module, step: int, clock: Clock
) -> dict[str, float] | None:
    """Return the held-out losses by concept if they are due, or else None, off the clock.

    Only the main process measures; the others return {}.
    """
    every, last = run.config.scores.held_out_steps, run.config.optimization.max_train_steps
    if not every or (step % every and step != last):
        return None
    if run.held_out is None or not run.accelerator.is_main_process:
        return {}
    network = run.accelerator.unwrap_model(denoiser)
    with clock.stopped(), as_saved(run), torch.compiler.set_stance("force_eager"):
        return run.held_out.measure(network)


def measure(
    run: Run, name: str, scores: LiveScores, step: int, drawn: Mapping[PromptSeed, Image]
) -> None:
    """Score a concept with the pictures `drawn` and more; save it if its score is the best yet."""
    words = called_by(run.configs[name])
    with run.trained.drawing(run.pipeline, name, words) as routed:
        known = {**drawn, **scores.of_base} if routed else drawn
        measured = scores.measure(run.pipeline, step, run.accelerator.device, known)
    track(run.accelerator, name, measured, step)
    scores.keep_best(step, measured, partial(save_concept, run, name, Progress(step), measured))


def checkpoint(
    run: Run,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    asked: Request,
    clock: Clock,
) -> None:
    """Write a checkpoint if one is due or asked for, off the clock."""
    every = run.config.run.checkpointing_steps
    due = every and progress.step % every == 0
    if run.accelerator.is_main_process and (due or asked & (Request.SAVE | Request.ENDS)):
        with clock.stopped():
            save_checkpoint(
                run.config,
                run.inputs,
                progress,
                run.trained,
                optimizer,
                run.ema,
                run.accelerator,
                partial(save_concepts, run, progress),
            )


def save_concepts(run: Run, progress: Progress, folder: Path) -> None:
    """Write every concept into a checkpoint, as the result would be if the run ended here.

    Only for methods whose result is a concept file, which is small.
    """
    if not method_named(run.config.adapter.method).makes_concept:
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
    training = dataclasses.replace(run.trainings[name], progress=progress, scores=scores)
    metadata = describe(own, training, run.pipeline)
    save_result(run.pipeline, run.trained, name, own, metadata, folder)
