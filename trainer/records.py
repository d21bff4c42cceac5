"""What a run writes about itself: its folder, metrics.jsonl, validation sheets, summary.json."""

import json
import math
import resource
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from jaxtyping import Float
from PIL import Image
from tqdm import tqdm

from trainer.cache import on_device
from trainer.checkpoint import CONFIG, PREFIX, Progress, checkpoints
from trainer.config import Config, RunConfig, to_toml
from trainer.errors import TrainerError
from trainer.files import save_png, write_atomically
from trainer.methods import FILE_NAMES, delta_norm
from trainer.sampling import sample_images

METRICS, SUMMARY, VALIDATION = "metrics.jsonl", "summary.json", "validation"


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
    names = [CONFIG, METRICS, SUMMARY, VALIDATION, *sorted(set(FILE_NAMES.values()))]
    written = [folder / name for name in names if (folder / name).exists()]
    return [*written, *folder.glob(f"{PREFIX}*"), *folder.glob(f".{PREFIX}*.tmp")]


class MetricsLog:
    """`metrics.jsonl` and the progress line: means of the losses since the last line.

    Losses are summed on the device; they are read, and averaged over the processes, only when a
    line is due, so that no other step waits for the device.
    """

    def __init__(self, config: Config, first_step: int, *, enabled: bool) -> None:
        """Open the log for a run that continues after `first_step` steps."""
        self._path = config.run.output_dir / METRICS
        self._every = config.run.logging_steps
        self._enabled = enabled
        self._sums: torch.Tensor | None = None
        self._count = 0
        if enabled:
            self._forget_after(first_step)
        self._bar = tqdm(
            total=config.optimization.max_train_steps,
            initial=first_step,
            desc="training",
            unit="step",
            disable=not enabled,
        )

    def count(self, losses: Float[torch.Tensor, "3"]) -> None:
        """Add the total, instance and prior loss of a step to those of the line to come."""
        self._sums = losses if self._sums is None else self._sums + losses
        self._count += 1

    def finish_step(self, progress: Progress, lr: float, unet: UNet2DConditionModel) -> None:
        """Move the bar, and write a line when one is due.

        Raises:
            TrainerError: when the adapter is no longer finite.
        """
        self._bar.update()
        step = progress.step
        if self._sums is None or (step % self._every and step != self._bar.total):
            return
        means: Any = reduce(self._sums / self._count, "mean")
        loss, instance_loss, prior_loss = means.tolist()
        self._sums, self._count = None, 0
        if self._enabled:
            norm = delta_norm(unet)
            if not (math.isfinite(norm) and math.isfinite(loss)):
                raise TrainerError(
                    f"Training diverged before step {step}: the loss is {loss} and the norm of the "
                    f"change {norm}; use a lower --learning_rate, or bf16 in place of fp16."
                )
            self._bar.set_postfix_str(f"loss {loss:.4f}, lr {lr:.1e}, ‖delta_W‖ {norm:.3g}")
            line = {
                "step": step,
                "loss": loss,
                "instance_loss": instance_loss,
                "prior_loss": prior_loss,
                "lr": lr,
                "delta_norm": norm,
                "seconds": round(progress.seconds, 3),
            }
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Leave the progress line as it stands."""
        self._bar.close()

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


def draw_validation(
    pipeline: StableDiffusionPipeline, config: Config, step: int, device: torch.device
) -> Path:
    """One row of pictures, a column a validation prompt, always from the same noise.

    The row of step 0 is the base's, unless the adapter's start perturbs it.
    """
    run = config.run
    with on_device(pipeline, device):
        images = sample_images(
            pipeline,
            run.validation_prompt,
            [config.optimization.seed + index for index in range(len(run.validation_prompt))],
            num_inference_steps=run.num_inference_steps,
            guidance_scale=run.guidance_scale,
            resolution=config.instance.resolution,
            progress=False,
        )
    side = config.instance.resolution
    sheet = Image.new("RGB", (side * len(images), side))
    for column, image in enumerate(images):
        sheet.paste(image, (side * column, 0))
    folder = run.output_dir / VALIDATION
    folder.mkdir(exist_ok=True)
    path = folder / f"{step:06d}.png"
    save_png(sheet, path)
    return path


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
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
