"""Write `metrics.jsonl` and the progress line while a run trains."""

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import reduce
from jaxtyping import Float
from tqdm import tqdm

from loldu.errors import LoLDUError
from trainer.methods.trained import Trained
from trainer.options.concepts import SINGLE
from trainer.options.config import Config
from trainer.results.manifest import Manifest
from trainer.results.output_dir import forget_after
from trainer.results.places import METRICS
from trainer.training.checkpoint import Progress
from trainer.training.memory import peak_memory_mib
from trainer.training.tracking import track

logger = logging.getLogger(__name__)

HELD_OUT = "held_out_loss"


class MetricsLog:
    """`metrics.jsonl` of every concept and one progress line: means since the last line.

    On a terminal the progress line is a bar; in a log file it is a line every `logging_steps`.
    Losses are summed on the device. They are read, and averaged over the processes, only when a
    line is due, so that no other step waits for the device.
    """

    def __init__(
        self,
        configs: Mapping[str, Config],
        trained: Trained,
        accelerator: Accelerator,
        first: Progress,
    ) -> None:
        """Open the logs of a run that continues after `first`."""
        config = next(iter(configs.values()))
        self._paths = {name: own.run.output_dir / METRICS for name, own in configs.items()}
        self._every = config.run.logging_steps
        self._total = config.optimization.max_train_steps
        self._first = first
        self._trained = trained
        self._accelerator = accelerator
        self._sums: torch.Tensor | None = None
        self._count = 0
        if accelerator.is_main_process:
            for path in self._paths.values():
                forget_after(path, first.step)
        self._bar = tqdm(
            total=self._total,
            initial=first.step,
            desc="training",
            disable=None if accelerator.is_main_process else True,  # None: only on a terminal
        )

    def count(self, losses: Float[torch.Tensor, "concepts 3"]) -> None:
        """Add a step's total, instance and prior losses to the next line."""
        self._sums = losses if self._sums is None else self._sums + losses
        self._count += 1

    def finish_step(
        self,
        progress: Progress,
        lr: float,
        held_out: Mapping[str, float] | None = None,
        *,
        last: bool = False,
    ) -> None:
        """Move the bar; write lines if they are due, and always after the last step.

        Args:
            progress: Steps and seconds.
            lr: Learning rate of the step.
            held_out: Held-out losses after the step by concept, which make the lines due. Processes
                that did not measure give {}.
            last: Whether the run ends here.

        Raises:
            LoLDUError: If a loss or what is trained is no longer finite.
        """
        self._bar.update()
        last = last or held_out is not None or progress.step == self._total
        if self._sums is None or (progress.step % self._every and not last):
            return
        over_processes: Any = reduce(self._sums / self._count, "mean")
        means = over_processes.tolist()
        self._sums, self._count = None, 0
        if not self._accelerator.is_main_process:
            return
        norms = self._trained.delta_norms()
        peak = round(peak_memory_mib(), 1)
        for name, losses, norm in zip(self._paths, means, norms, strict=True):
            self._check_finite(name, progress.step, losses[0], norm)
            line = {
                "step": progress.step,
                **dict(zip(("loss", "instance_loss", "prior_loss"), losses, strict=True)),
                "lr": lr,
                "delta_norm": norm,
                "seconds": round(progress.seconds, 3),
                "peak_memory_mib": peak,
            }
            self._write(name, line | ({HELD_OUT: held_out[name]} if held_out else {}))
        loss = sum(loss for loss, *_ in means) / len(means)
        known = [norm for norm in norms if norm is not None]
        change = f", ‖delta_W‖ {max(known):.3g}" if known else ""
        memory = f", peak {peak / 1024:.1f} GiB" if peak else ""
        unseen = f", held-out {sum(held_out.values()) / len(held_out):.4f}" if held_out else ""
        self._show(progress, f"loss {loss:.4f}{unseen}, lr {lr:.1e}{change}{memory}")

    def start(self, held_out: Mapping[str, float]) -> None:
        """Write the held-out losses of step 0, where there is no other number yet."""
        for name, loss in held_out.items():
            peak = round(peak_memory_mib(), 1)
            line = {"step": 0, "seconds": 0.0, "peak_memory_mib": peak, HELD_OUT: loss}
            self._write(name, line)

    def _write(self, name: str, line: dict[str, Any]) -> None:
        path = self._paths[name]
        Manifest(path.parent).append(path, json.dumps(line) + "\n")
        track(self._accelerator, name, line, line["step"])

    def close(self) -> None:
        """Leave the progress line as it stands."""
        self._bar.close()

    def _check_finite(self, concept: str, step: int, loss: float, norm: float | None) -> None:
        if math.isfinite(loss) and math.isfinite(norm or 0.0):
            return
        whose = "" if concept == SINGLE else f" of {concept}"
        raise LoLDUError(
            f"Training{whose} diverged before step {step}: the loss is {loss} and the norm "
            f"of the change {norm}; use a lower --learning_rate, or bf16 in place of fp16."
        )

    def _show(self, progress: Progress, text: str) -> None:
        """Show the progress behind the bar, or as a line of the log if there is no terminal."""
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
