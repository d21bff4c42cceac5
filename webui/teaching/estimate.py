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
_START_S = 10.0
"""Time until a process has loaded its base."""
_LAST_JOBS = 3
_OF_CLASS = ("class_prompt", "class_data_dir", "num_class_images", "resolution", "seed")
_OF_CLASS += ("pretrained_model_name_or_path", "num_inference_steps", "guidance_scale")
"""Options that decide the class pictures."""


def estimated_seconds(
    options: Mapping[str, Any], jobs: Iterable[Job], measure: Callable[[int, int], float]
) -> float:
    """Return the seconds of a training: its start, its steps and the pictures that it draws.

    Counts pictures that pass through the network. The time of one comes from the last three
    finished trainings of this base, or else from a measurement.

    Args:
        options: Options of the trainer, by name.
        jobs: All jobs so far.
        measure: Returns the seconds of a forward pass, for a batch size and a side in pixels.
    """
    rows, side = rows_a_step(options), options["resolution"]
    finished = [job for job in jobs if job.status is Status.FINISHED]
    known = [
        seconds
        for job in sorted(finished, key=lambda job: job.created)[-_LAST_JOBS:]
        if (seconds := _seconds_a_row(job.folder, options["pretrained_model_name_or_path"], side))
    ]
    a_row = sum(known) / len(known) if known else _STEP_PASSES * measure(rows, side) / rows
    steps, drawn = options["max_train_steps"], drawn_pictures(options, finished)
    denoising = 2 * options.get("num_inference_steps", 50)
    return _START_S + a_row * (steps * rows + drawn * denoising / _STEP_PASSES)


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


def _seconds_a_row(folder: Path, base: str, side: int) -> float | None:
    """Return the seconds per picture and step of a training, scaled to `side`; None if unlike."""
    try:
        options = stored_options(folder)
        last = json.loads((folder / METRICS).read_bytes().splitlines()[-1])
        if options["pretrained_model_name_or_path"] != base:
            return None
        a_step = last["seconds"] / last["step"]
        found = float(a_step / rows_a_step(options) * (side / options["resolution"]) ** 2)
    except (LoLDUError, OSError, ValueError, LookupError, TypeError, ArithmeticError):
        return None  # it left no metrics, or somebody edited its files
    return found if math.isfinite(found) else None


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
