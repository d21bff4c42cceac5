"""What a run writes about itself: its folder, metrics.jsonl, the progress line, summary.json."""

import json
import logging
import math
import re
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from jaxtyping import Float
from tqdm import tqdm

from loldu.base.record import CONFIG, SUMMARY
from loldu.errors import LoLDUError
from loldu.files import write_atomically
from trainer.methods.method import FILE_NAMES, Trained
from trainer.options.concepts import FOLDER, SINGLE
from trainer.options.config import Config, RunConfig, to_toml
from trainer.results.card import CARD, is_card
from trainer.training.checkpoint import PREFIX, Progress, checkpoints
from trainer.training.tracking import TRACKING, Trackers
from trainer.training.validation import VALIDATION

logger = logging.getLogger(__name__)

_STATUS = Path("/proc/self/status")
"""On Linux it tells the process's own peak; there, ru_maxrss can be that of a larger parent."""
METRICS, SAMPLES = "metrics.jsonl", "samples"
SCORES, BEST, SCORES_OF_BEST = "validation.jsonl", "best", "scores.json"


def refuse_another_run(run: RunConfig, checkpoint: Path | None) -> None:
    """Leave the folder of another run alone, before any work is done.

    Args:
        run: the options.
        checkpoint: what the run continues from, if it does.

    Raises:
        LoLDUError: when another run is there, which is neither continued nor overwritten;
            `--resume latest` may start anew in place of one that left no checkpoint and no result.
    """
    folder = run.output_dir
    if folder.exists() and not folder.is_dir():
        raise LoLDUError(f"--output_dir {folder} is a file; name a folder.")
    if (folder / CARD).exists() and not is_card(folder / CARD):
        raise LoLDUError(
            f"{folder / CARD} is not a model card of this trainer, which would take its place; "
            "move it, or name another --output_dir."
        )
    if checkpoint is not None:
        continued = checkpoint.resolve().parent == folder.resolve()
    else:
        results = {SUMMARY, *FILE_NAMES.values()}
        finished = any((folder / name).exists() for name in results)
        continued = run.resume is not None and not finished
    if _earlier_run(folder) and not continued and not run.overwrite:
        cure = "continue it with --resume latest, " if checkpoints(folder) else ""
        raise LoLDUError(
            f"--output_dir {folder} holds another run; {cure}replace it with --overwrite, or name "
            "another folder."
        )


def open_output_dir(
    config: Config, concepts: Mapping[str, Config], checkpoint: Path | None
) -> None:
    """Remove the run that --overwrite replaces, and put down the options, each concept's too."""
    folder = config.run.output_dir
    if checkpoint is None:
        for path in _earlier_run(folder):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    for own in (config, *concepts.values()):
        own.run.output_dir.mkdir(parents=True, exist_ok=True)
        write_atomically(own.run.output_dir / CONFIG, to_toml(own))


def _earlier_run(folder: Path) -> list[Path]:
    """What the trainer wrote here; class pictures know what they were made from and may stay."""
    names = [CONFIG, METRICS, SUMMARY, VALIDATION, TRACKING, CARD, SCORES, BEST, f".{BEST}.tmp"]
    names += [FOLDER]
    names += sorted(set(FILE_NAMES.values()))
    written = [folder / name for name in names if (folder / name).exists()]
    written += [*folder.glob(f"{SAMPLES}/*-base.png"), *folder.glob(f"{SAMPLES}/*-concept.png")]
    return [*written, *folder.glob(f"{PREFIX}*"), *folder.glob(f".{PREFIX}*.tmp")]


class MetricsLog:
    """`metrics.jsonl` of every concept and one progress line: means since the last line.

    On a terminal the progress line is a bar; in a log file it is a line every `logging_steps`.
    Losses are summed on the device; they are read, and averaged over the processes, only when a
    line is due, so that no other step waits for the device.
    """

    def __init__(
        self,
        configs: Mapping[str, Config],
        trained: Trained,
        trackers: Trackers,
        first: Progress,
        *,
        enabled: bool,
    ) -> None:
        """Open the logs of a run that continues after `first`."""
        config = next(iter(configs.values()))
        self._paths = {name: own.run.output_dir / METRICS for name, own in configs.items()}
        self._every = config.run.logging_steps
        self._total = config.optimization.max_train_steps
        self._first = first
        self._trained = trained
        self._trackers = trackers
        self._enabled = enabled
        self._sums: torch.Tensor | None = None
        self._count = 0
        if enabled:
            for path in self._paths.values():
                forget_after(path, first.step)
        self._bar = tqdm(
            total=self._total,
            initial=first.step,
            desc="training",
            disable=None if enabled else True,  # None: on a terminal alone
        )

    def count(self, losses: Float[torch.Tensor, "concepts 3"]) -> None:
        """Add the total, instance and prior losses of a step to those of the lines to come."""
        self._sums = losses if self._sums is None else self._sums + losses
        self._count += 1

    def finish_step(self, progress: Progress, lr: float, *, last: bool = False) -> None:
        """Move the bar, and write lines when they are due, as they are after the last step.

        Raises:
            LoLDUError: when what is trained is no longer finite.
        """
        self._bar.update()
        step = progress.step
        last = last or step == self._total
        if self._sums is None or (step % self._every and not last):
            return
        over_processes: Any = reduce(self._sums / self._count, "mean")
        means = over_processes.tolist()
        self._sums, self._count = None, 0
        if not self._enabled:
            return
        norms = self._trained.delta_norms()
        peak = round(peak_memory_mib(), 1)
        for (name, path), (loss, *parts), norm in zip(
            self._paths.items(), means, norms, strict=True
        ):
            if not math.isfinite(loss) or not math.isfinite(norm or 0.0):
                whose = "" if name == SINGLE else f" of {name}"
                raise LoLDUError(
                    f"Training{whose} diverged before step {step}: the loss is {loss} and the norm "
                    f"of the change {norm}; use a lower --learning_rate, or bf16 in place of fp16."
                )
            line = {
                "step": step,
                "loss": loss,
                **dict(zip(("instance_loss", "prior_loss"), parts, strict=True)),
                "lr": lr,
                "delta_norm": norm,
                "seconds": round(progress.seconds, 3),
                "peak_memory_mib": peak,
            }
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            self._trackers.log(name, line, step)
        loss = sum(loss for loss, *_ in means) / len(means)
        known = [norm for norm in norms if norm is not None]
        change = f", ‖delta_W‖ {max(known):.3g}" if known else ""
        memory = f", peak {peak / 1024:.1f} GiB" if peak else ""
        self._tell(progress, f"loss {loss:.4f}, lr {lr:.1e}{change}{memory}")

    def close(self) -> None:
        """Leave the progress line as it stands."""
        self._bar.close()

    def _tell(self, progress: Progress, text: str) -> None:
        """The line for people: behind the bar, or by itself where carriage returns are a mess."""
        if not self._bar.disable:
            self._bar.set_postfix_str(text)
            return
        line = tqdm.format_meter(
            progress.step,
            self._total,
            progress.seconds - self._first.seconds,
            initial=self._first.step,
            postfix=text,
            bar_format="step {n_fmt}/{total_fmt}{postfix}, {rate_fmt}, {remaining} left",
        )
        logger.info(" ".join(line.split()))  # tqdm pads the rate


def forget_after(path: Path, step: int) -> None:
    """Drop lines of steps that a resumed run takes again, and a line cut short by a kill."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] > step:
                break
        except json.JSONDecodeError:
            break
        kept.append(line + "\n")
    write_atomically(path, "".join(kept))


def write_summary(
    output_dir: Path, result: Path, trainable_parameters: int, progress: Progress
) -> None:
    """What a table needs to know of a finished run."""
    summary: dict[str, Any] = {
        "trainable_parameters": trainable_parameters,
        "train_steps": progress.step,
        "train_seconds": round(progress.seconds, 3),
        "concept_bytes": size_bytes(result),
        "peak_memory_mib": round(peak_memory_mib(), 1),
    }
    best = output_dir / BEST / SCORES_OF_BEST
    if best.exists():
        summary["best"] = json.loads(best.read_text(encoding="utf-8"))
    write_atomically(output_dir / SUMMARY, json.dumps(summary, indent=2) + "\n")


def size_bytes(result: Path) -> int:
    """Of a file, or of all files of a folder."""
    files = result.rglob("*") if result.is_dir() else [result]
    return sum(file.stat().st_size for file in files if file.is_file())


def peak_memory_mib() -> float:
    """The most memory held so far: of the GPU where there is one, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if _STATUS.is_file() and (most := re.search(rb"VmHWM:\s*(\d+) kB", _STATUS.read_bytes())):
        return int(most[1]) / 2**10
    if sys.platform == "win32":  # which has no such record
        return 0.0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in bytes there, else in KiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
