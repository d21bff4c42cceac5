"""Estimates of the duration of a training."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline

from loldu.base.families import family_of, network_of
from loldu.errors import LoLDUError
from loldu.options import options as known_options
from loldu.pictures.crop import Framing
from trainer.options.config import Config
from trainer.results.places import METRICS
from webui.engine.job import Job, Status
from webui.engine.options import stored_options

_STEP_PASSES = 2.0
"""Cost of a training step in forward passes: frozen weights need no gradient. Measured on the
miniature base: 2.06. A guided denoising step costs two as well."""
_LAST_JOBS = 3
_OF_CLASS = ("class_prompt", "class_data_dir", "num_class_images", "resolution", "seed")
_OF_CLASS += ("pretrained_model_name_or_path", "num_inference_steps", "guidance_scale")
"""Options that decide the class pictures."""


def estimated_seconds(
    options: Mapping[str, Any], jobs: Iterable[Job], measure: Callable[[int, int], float]
) -> float:
    """Return the seconds of a training: its steps, the pictures that it draws, and the rest.

    Counts pictures that pass through the network. The time of one, and the rest, such as the start,
    come from the last three finished trainings of this base. Without one, a picture is measured,
    and the rest is not counted.

    Args:
        options: Options of the trainer, by name.
        jobs: All jobs so far.
        measure: Returns the seconds of a forward pass, for a batch size and a side in pixels.
    """
    rows, side = rows_a_step(options), options["resolution"]
    finished = [job for job in jobs if job.status is Status.FINISHED]
    known = [
        taken
        for job in sorted(finished, key=lambda job: job.created)[-_LAST_JOBS:]
        if (taken := _taken(job, options["pretrained_model_name_or_path"], side, finished))
    ]
    if not known:
        return _STEP_PASSES * measure(rows, side) / rows * _all_rows(options, finished)
    a_row, rest = (sum(each) / len(known) for each in zip(*known, strict=True))
    return a_row * _all_rows(options, finished) + rest


def _all_rows(options: Mapping[str, Any], jobs: Iterable[Job]) -> float:
    """Return how many pictures pass through the network, as pictures of a training step."""
    denoising = 2 * options.get("num_inference_steps", 50) / _STEP_PASSES
    return options["max_train_steps"] * rows_a_step(options) + denoising * drawn_pictures(
        options, jobs
    )


def rows_a_step(options: Mapping[str, Any]) -> int:
    """Return how many pictures of the concept and of its class a step trains on."""
    batch = options.get("train_batch_size", 1)
    prior = options.get("prior_batch_size") or batch
    of_class = prior if options.get("with_prior_preservation") else 0
    return (batch + of_class) * options.get("gradient_accumulation_steps", 1)


def drawn_pictures(options: Mapping[str, Any], jobs: Iterable[Job] = ()) -> int:
    """Return how many pictures a run draws: of the class, for validation, scores and the card.

    Scores reuse validation pictures, and a run reuses the class pictures of the finished `jobs`.
    """
    prompts = len(options.get("validation_prompt", ()))
    every = options.get("validation_steps", 0)
    times = options["max_train_steps"] // every + 1 if every else 0
    drawn = prompts * (times + 2)
    if options.get("validation_scores"):
        each = options.get("validation_images", 4)
        others = max(1, len(options.get("drift_prompt", ()))) * each
        drawn += times * (prompts * (each - 1) + others) + prompts + others  # also before step 1
    if options.get("with_prior_preservation") and not any(
        _drew_class_pictures(job.folder, options) for job in jobs
    ):
        drawn += options.get("num_class_images", 100)
    return drawn


def _drew_class_pictures(folder: Path, options: Mapping[str, Any]) -> bool:
    """Return whether a training has left the class pictures that these options need."""
    try:
        before = stored_options(folder)
    except LoLDUError:
        return False
    same = all(_value(before, name) == _value(options, name) for name in _OF_CLASS)
    return same and before.get("with_prior_preservation") is True


def _value(options: Mapping[str, Any], name: str) -> object:
    """Return the value of an option, or its default, as a file of options holds it."""
    value = options.get(name, known_options(Config)[name].default)
    return list(value) if isinstance(value, tuple) else value


def _taken(job: Job, base: str, side: int, jobs: Iterable[Job]) -> tuple[float, float] | None:
    """Return what a training took, or None if it has another base or no record.

    Returns:
        The seconds per picture and step, scaled to `side`, and those that neither steps nor drawn
        pictures explain: 0 if it was resumed, as the record has its last start alone.
    """
    try:
        options = stored_options(job.folder)
        last = json.loads((job.folder / METRICS).read_bytes().splitlines()[-1])
        if options["pretrained_model_name_or_path"] != base:
            return None
        a_row = last["seconds"] / last["step"] / rows_a_step(options)
        before = [other for other in jobs if (other.ended or 0) <= (job.started or 0)]
        taken = (job.ended or 0) - (job.started or 0) - a_row * _all_rows(options, before)
        found = float(a_row * (side / options["resolution"]) ** 2), max(0.0, float(taken))
    except (LoLDUError, OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return None  # it left no metrics, or somebody edited its files
    return found if all(map(math.isfinite, found)) else None


@torch.no_grad()
def measured_pass(pipeline: DiffusionPipeline, rows: int, side: int) -> float:
    """Return the seconds of a forward pass of `rows` pictures, after a warm-up pass."""
    family, network = family_of(pipeline), network_of(pipeline)
    device, rng = network.device, np.random.default_rng(0)
    shape = family.latent_shape(pipeline, side)
    timesteps = torch.from_numpy(family.noise_schedule(pipeline).draw_timesteps(rng, rows, shape))
    noisy = torch.zeros(rows, *shape, device=device)
    views = family.describe_views([Framing.whole(side)] * rows)
    conditioning = {
        **family.encode_text(pipeline, [""] * rows),
        **{name: tensor.to(device) for name, tensor in views.items()},
    }

    def taken() -> float:
        started = time.perf_counter()
        family.predict(network, noisy, timesteps.to(device), conditioning)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - started

    taken()
    return taken()


def duration(seconds: float) -> str:
    """Return a duration in words, such as about 1 h 20 min."""
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"about {minutes} minute{'' if minutes == 1 else 's'}"
    hours, minutes = divmod(round(minutes / 10) * 10, 60)
    return f"about {hours} h {minutes} min" if minutes else f"about {hours} h"
