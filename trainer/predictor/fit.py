"""Train a predictor, from its first step or exactly from a checkpoint, and write its file."""

import dataclasses
import json
import logging
import math
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from loldu import __version__
from loldu.base.families import family_of
from loldu.base.open import weights_digest
from loldu.base.record import public_base
from loldu.base.source import quiet, reading
from loldu.concept.format import reason_of
from loldu.concept.metadata import shown
from loldu.errors import LoLDUError
from loldu.files import drafted
from loldu.predict.predictor import Predictor, save_predictor
from loldu.predict.reader import ReaderConfig, new_reader
from trainer.predictor.objective import PredictorObjective, add_frame
from trainer.predictor.options import FittingConfig, PredictorConfig
from trainer.predictor.subjects import Subjects
from trainer.results.manifest import Manifest
from trainer.results.output_dir import forget_after
from trainer.results.places import METRICS
from trainer.training.checkpoint import saving, size_of

logger = logging.getLogger(__name__)

PREDICTOR, CHECKPOINT = "predictor.safetensors", "checkpoint.pt"


def check_output(config: PredictorConfig) -> None:
    """Check that the output folder holds no other training.

    Raises:
        LoLDUError: If it does, and the training is not continued.
    """
    folder = config.output.output_dir
    there = [name for name in (CHECKPOINT, PREDICTOR) if (folder / name).exists()]
    if there and config.output.resume is None:
        raise LoLDUError(
            f"--output_dir {folder} holds a {there[0]}; continue it with --resume latest, or name "
            "another folder."
        )


def new_predictor(config: PredictorConfig, pipeline: DiffusionPipeline) -> Predictor:
    """Add the adapter to the base, and return a predictor to train.

    Raises:
        LoLDUError: If no layer matches, or there is no such backbone.
    """
    about = {
        "token": config.data.token,
        "prompt": config.data.prompt,
        "base": {**public_base(config.base), "family": family_of(pipeline).name},
        "versions": {"loldu": __version__, "torch": version("torch")},
    }
    frame, options = add_frame(pipeline, config, about), config.reader
    sizes = ReaderConfig(
        numbers=sum(layer.delta.numel() for layer in frame.layers),
        picture_px=options.picture_px,
        embedding=options.embedding,
        spread=options.spread_weight > 0,
    )
    torch.manual_seed(config.fitting.seed)
    with reading("--backbone", str(options.backbone)), quiet():
        reader = new_reader(sizes, options.backbone)
    return Predictor(frame, reader.to(pipeline.device))


def train_predictor(
    config: PredictorConfig, pipeline: DiffusionPipeline, predictor: Predictor, subjects: Subjects
) -> Path:
    """Train a new predictor and return its file; an interrupted training can be continued.

    All randomness follows from the seed and the step, so network, optimizer and step are the whole
    state.

    Args:
        config: The options.
        pipeline: The base, with the adapter of `new_predictor`.
        predictor: What `new_predictor` returned.
        subjects: The subjects to learn from.

    Raises:
        LoLDUError: If the checkpoint is of another training, or the training diverges.
    """
    fitting, reader = config.fitting, predictor.reader.train()
    optimizer = _optimizer(predictor, fitting)
    made_of = _made_of(config, subjects, weights_digest(pipeline))
    folder, first, before = config.output.output_dir, 0, 0.0
    folder.mkdir(parents=True, exist_ok=True)
    if config.output.resume and (folder / CHECKPOINT).exists():
        first, before = _restore(folder / CHECKPOINT, predictor, optimizer, made_of)
    objective = PredictorObjective(pipeline, predictor.frame, subjects, config)
    log = _Log(config, first, before)
    with logging_redirect_tqdm(), log.bar:
        for step in range(first, fitting.max_train_steps):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * lr_factor(fitting, step)
            losses = objective.losses(reader, objective.draw(step))
            losses.total.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            done = step + 1
            due = done % config.output.checkpointing_steps == 0 or done == fitting.max_train_steps
            measured = objective.held_out(reader) if due else {}
            log.add(done, torch.stack(losses).detach(), measured)
            if due:
                state = {
                    "reader": reader.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "progress": [done, log.seconds],
                    "made_of": made_of,
                }
                about = measured | {"steps": done, "subjects": len(subjects.pictures)}
                _save(folder, predictor, state, about | {"pictures": len(subjects.pixels)})
    return folder / PREDICTOR


def lr_factor(fitting: FittingConfig, step: int) -> float:
    """Return the factor on a step's learning rates: warm-up, a constant part, a line to zero."""
    left = (1 - step / fitting.max_train_steps) / (1 - fitting.lr_hold)
    return min(1.0, (step + 1) / max(1, fitting.lr_warmup_steps), left)


def _optimizer(predictor: Predictor, fitting: FittingConfig) -> torch.optim.AdamW:
    parts: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for name, parameter in predictor.reader.named_parameters():
        parts[name.startswith("backbone.")].append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": parts[True], "peak": fitting.backbone_lr},
        {"params": parts[False], "peak": fitting.learning_rate},
    ]
    decay = fitting.adam_weight_decay
    return torch.optim.AdamW(groups, betas=(0.9, 0.99), weight_decay=decay, fused=True)


def _made_of(config: PredictorConfig, subjects: Subjects, base: str) -> dict[str, str]:
    """Return everything that a continued training must share with its beginning, by name."""
    made_of = {"The base": base, "A picture or prompt": subjects.digest}
    for section in (config.data, config.reader, config.fitting):
        for name, value in dataclasses.asdict(section).items():
            if name not in ("subjects", "prompt", "token", "resolution"):  # the digest has these
                made_of[f"--{name}"] = repr(value)
    return made_of


def _restore(
    path: Path, predictor: Predictor, optimizer: torch.optim.Optimizer, made_of: dict[str, str]
) -> tuple[int, float]:
    """Load a checkpoint, and return its step and seconds.

    Raises:
        LoLDUError: If it is damaged, or of a training with other options, pictures or base.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        was = state["made_of"]
        for name in made_of:
            if was.get(name) != made_of[name]:
                raise LoLDUError(
                    f"{name} has changed since {path} was made; resume with what it was "
                    f"({shown(was.get(name))}, now {made_of[name]}), or start a new training."
                )
        predictor.reader.load_state_dict(state["reader"])
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["progress"]
    except LoLDUError:
        raise
    except Exception as error:  # a damaged file fails in ways no list exhausts
        raise LoLDUError(
            f"The checkpoint {path} is damaged ({shown(reason_of(error), 100)}); delete it and "
            "start anew."
        ) from error
    logger.info("Resuming after step %d from %s", step, path)
    return step, seconds


def _save(folder: Path, predictor: Predictor, state: dict[str, Any], about: dict[str, Any]) -> None:
    """Write the predictor as it is, and the checkpoint."""
    metadata = predictor.frame.metadata | about
    shipped = dataclasses.replace(
        predictor, frame=dataclasses.replace(predictor.frame, metadata=metadata)
    )
    with saving(folder / CHECKPOINT, 2 * size_of(state)):
        save_predictor(shipped, folder / PREDICTOR, overwrite=True)
        with drafted(folder / CHECKPOINT) as draft:
            torch.save(state, draft)


class _Log:
    """`metrics.jsonl`, and one line or bar of progress: means since the last line."""

    def __init__(self, config: PredictorConfig, first: int, seconds: float) -> None:
        self._path = config.output.output_dir / METRICS
        self._every, self._rows = config.output.logging_steps, config.fitting.train_batch_size
        self._started = time.monotonic() - seconds
        self._sum, self._count = torch.zeros(3), 0
        forget_after(self._path, first)
        total = config.fitting.max_train_steps
        self.bar = tqdm(total=total, initial=first, desc="training", disable=None)

    @property
    def seconds(self) -> float:
        """Seconds of training, those before a resume included."""
        return time.monotonic() - self._started

    def add(self, step: int, losses: torch.Tensor, measured: dict[str, float]) -> None:
        """Count a step, and write a line if one is due.

        Raises:
            LoLDUError: If the loss is no longer finite.
        """
        self.bar.update()
        self._sum, self._count = self._sum + losses.cpu(), self._count + 1
        if step % self._every and not measured:
            return
        loss, denoising, squared = (self._sum / self._count).tolist()
        self._sum, self._count = torch.zeros(3), 0
        if not math.isfinite(loss):
            raise LoLDUError(
                f"The training diverged before step {step}; use a lower --learning_rate."
            )
        seconds = round(self.seconds, 1)
        line = {"step": step, "loss": loss, "denoising_loss": denoising, "squared_norm": squared}
        line |= {"seconds": seconds, **measured}
        Manifest(self._path.parent).append(self._path, json.dumps(line) + "\n")
        held_out = ", held-out {held_out_loss:.4f} (other {other_loss:.4f}, base {base_loss:.4f})"
        text = f"loss {loss:.4f}{held_out.format(**measured) if measured else ''}"
        self.bar.set_postfix_str(text)
        if self.bar.disable:
            logger.info("step %d of %d: %s, %.0f s", step, self.bar.total, text, seconds)
