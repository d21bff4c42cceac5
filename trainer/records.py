"""What a run writes about itself: its folder, metrics.jsonl, the progress line, summary.json."""

import json
import logging
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from diffusers import UNet2DConditionModel
from PIL import Image
from tqdm import tqdm

from trainer.checkpoint import CONFIG, PREFIX, Progress, checkpoints
from trainer.config import Config, RunConfig, to_toml
from trainer.errors import TrainerError
from trainer.files import write_atomically
from trainer.loop import Losses
from trainer.methods import FILE_NAMES, delta_norm
from trainer.tracking import TRACKING, Trackers
from trainer.validation import VALIDATION

logger = logging.getLogger(__name__)

METRICS, SUMMARY = "metrics.jsonl", "summary.json"


def refuse_another_run(run: RunConfig, checkpoint: Path | None) -> None:
    """Leave the folder of another run alone, before any work is done.

    Args:
        run: the options.
        checkpoint: what the run continues from, if it does.

    Raises:
        TrainerError: when another run is there, which is neither continued nor overwritten;
            `--resume latest` may start anew in place of one that left no checkpoint and no result.
    """
    folder = run.output_dir
    if folder.exists() and not folder.is_dir():
        raise TrainerError(f"--output_dir {folder} is a file; name a folder.")
    if checkpoint is not None:
        continued = checkpoint.resolve().parent == folder.resolve()
    else:
        finished = any((folder / name).exists() for name in FILE_NAMES.values())
        continued = run.resume is not None and not finished
    if _earlier_run(folder) and not continued and not run.overwrite:
        cure = "continue it with --resume latest, " if checkpoints(folder) else ""
        raise TrainerError(
            f"--output_dir {folder} holds another run; {cure}replace it with --overwrite, or name "
            "another folder."
        )


def open_output_dir(config: Config, checkpoint: Path | None) -> None:
    """Remove the run that --overwrite replaces, and put down this run's options."""
    folder = config.run.output_dir
    folder.mkdir(parents=True, exist_ok=True)
    if checkpoint is None:
        for path in _earlier_run(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_atomically(folder / CONFIG, to_toml(config))


def _earlier_run(folder: Path) -> list[Path]:
    """What the trainer wrote here; class pictures know what they were made from and may stay."""
    names = [CONFIG, METRICS, SUMMARY, VALIDATION, TRACKING, *sorted(set(FILE_NAMES.values()))]
    written = [folder / name for name in names if (folder / name).exists()]
    return [*written, *folder.glob(f"{PREFIX}*"), *folder.glob(f".{PREFIX}*.tmp")]


class MetricsLog:
    """`metrics.jsonl` and the progress line: means of the losses since the last line.

    On a terminal the progress line is a bar; in a log file it is a line every `logging_steps`.
    Losses are summed on the device and read only when a line is due, so that no other step waits
    for the device.
    """

    def __init__(self, config: Config, first: Progress, *, enabled: bool) -> None:
        """Open the log for a run that continues after `first`."""
        self._path = config.run.output_dir / METRICS
        self._every = config.run.logging_steps
        self._total = config.optimization.max_train_steps
        self._first = first
        self._enabled = enabled
        self._sums: torch.Tensor | None = None
        self._count = 0
        if enabled:
            self._forget_after(first.step)
        self._trackers = Trackers(config, first.step, enabled=enabled)
        self._bar = tqdm(
            total=self._total,
            initial=first.step,
            desc="training",
            disable=None if enabled else True,  # None: on a terminal alone
        )

    def count(self, losses: Losses) -> None:
        """Add the losses of a forward pass to those of the line to come."""
        values = torch.stack([losses.total, losses.instance, losses.prior]).detach()
        self._sums = values if self._sums is None else self._sums + values
        self._count += 1

    def finish_step(
        self, progress: Progress, lr: float, unet: UNet2DConditionModel, *, last: bool = False
    ) -> None:
        """Move the bar, and write a line when one is due; it is after the last step, whichever.

        Raises:
            TrainerError: when the adapter is no longer finite.
        """
        self._bar.update()
        step = progress.step
        last = last or step == self._total
        if self._sums is None or (step % self._every and not last):
            return
        loss, instance_loss, prior_loss = (self._sums / self._count).tolist()
        self._sums, self._count = None, 0
        if self._enabled:
            norm = delta_norm(unet)
            if not (math.isfinite(norm) and math.isfinite(loss)):
                raise TrainerError(
                    f"Training diverged before step {step}: the loss is {loss} and the norm of the "
                    f"change {norm}; use a lower --learning_rate, or bf16 in place of fp16."
                )
            line = {
                "step": step,
                "loss": loss,
                "instance_loss": instance_loss,
                "prior_loss": prior_loss,
                "lr": lr,
                "delta_norm": norm,
                "seconds": round(progress.seconds, 3),
                "peak_memory_mib": round(peak_memory_mib(), 1),
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._trackers.log({name: line[name] for name in line if name != "step"}, step)
            self._tell(progress, line)

    def show(self, image: Image.Image, step: int) -> None:
        """Hand the validation sheet of a step to the trackers."""
        self._trackers.log_image("validation", image, step)

    def close(self) -> None:
        """Leave the progress line as it stands."""
        self._bar.close()
        self._trackers.finish()

    def _tell(self, progress: Progress, line: dict[str, Any]) -> None:
        """The line for people: behind the bar, or by itself where carriage returns are a mess."""
        text = (
            f"loss {line['loss']:.4f}, lr {line['lr']:.1e}, ‖delta_W‖ {line['delta_norm']:.3g}, "
            f"peak {line['peak_memory_mib'] / 1024:.1f} GiB"
        )
        if not self._bar.disable:
            self._bar.set_postfix_str(text)
            return
        meter = tqdm.format_meter(
            progress.step,
            self._total,
            progress.seconds - self._first.seconds,
            initial=self._first.step,
            postfix=text,
            bar_format="step {n_fmt}/{total_fmt}{postfix}, {rate_noinv_fmt}, {remaining} left",
        )
        logger.info(" ".join(meter.split()))  # tqdm pads the rate

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that a resumed run takes again, and a line cut short by a kill."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                if json.loads(line)["step"] > step:
                    break
            except json.JSONDecodeError:
                break
            kept.append(line + "\n")
        write_atomically(self._path, "".join(kept))


def write_summary(
    output_dir: Path, concept: Path, trainable_parameters: int, progress: Progress
) -> None:
    """What a table needs to know of a finished run."""
    summary = {
        "trainable_parameters": trainable_parameters,
        "train_steps": progress.step,
        "train_seconds": round(progress.seconds, 3),
        "concept_bytes": concept.stat().st_size,
        "peak_memory_mib": round(peak_memory_mib(), 1),
    }
    write_atomically(output_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")


def peak_memory_mib() -> float:
    """The most memory held so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 2**20
    import resource  # which Windows does not have

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
