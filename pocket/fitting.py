"""The training loop of all pre-training: resumable, seeded by step."""

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from loldu.files import drafted

Losses = dict[str, Tensor]

_SAVE_EVERY_S = 600


def device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def half_precision() -> torch.autocast:
    """Return an autocast to bf16 on a GPU; on CPUs fp32 is faster at these sizes."""
    return torch.autocast(device().type, torch.bfloat16, enabled=device().type == "cuda")


def cosine(progress: float) -> float:
    """Return a learning-rate factor: half a cosine from 1 to 0."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def hold_then_decay(progress: float, hold: float = 0.5) -> float:
    """Return a learning-rate factor: 1, then linearly down to 0."""
    return min(1.0, (1 - progress) / (1 - hold))


class Ema:
    """An exponential moving average of parameters, with a warm-up."""

    def __init__(self, parameters: Iterable[Tensor], decay: float) -> None:
        """Start at the current values of the parameters."""
        self.decay, self.parameters = decay, list(parameters)
        self.shadow = [p.detach().clone() for p in self.parameters]

    def update(self, step: int) -> None:
        """Move the average toward the current parameters."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], weight)

    def swap(self) -> None:
        """Exchange the average and the parameters; twice is a no-op."""
        with torch.no_grad():
            for live, average in zip(self.parameters, self.shadow, strict=True):
                kept = live.clone()
                live.copy_(average)
                average.copy_(kept)


# Many parameters: the settings in which the trainings of all models differ.
def fit(
    name: str,
    module: nn.Module,
    groups: list[dict[str, object]],
    losses_at: Callable[[int], Losses],
    *,
    build: Path,
    steps: int,
    schedule: Callable[[float], float] = cosine,
    warmup_steps: int = 100,
    clip: float = 1.0,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 0.01,
    ema_decay: float | None = None,
    optimizer_class: type[torch.optim.AdamW] = torch.optim.AdamW,
    first_step: int = 0,
    checkpoint_every: int = 500,
    on_checkpoint: Callable[[int], Mapping[str, object]] | None = None,
) -> None:
    """Minimize ``losses_at(step)["loss"]``; afterwards `module` holds the result.

    An interrupted training continues from its last checkpoint; a finished one is loaded.

    Args:
        name: Name of the folder with checkpoints and the log.
        module: Trained parameters and buffers; it receives the averaged weights.
        groups: Optimizer groups, each with `params` and a peak `lr`.
        losses_at: Function from a step to losses; torch's generator is seeded with the step.
        build: Folder for work files.
        steps: Total number of optimizer steps.
        schedule: Function from progress in [0, 1] to a factor on the learning rates.
        warmup_steps: Steps of linear warm-up.
        clip: Largest gradient norm.
        betas: AdamW's betas.
        weight_decay: AdamW's weight decay.
        ema_decay: Decay of the averaged weights; None for no average.
        optimizer_class: AdamW or a kind of it.
        first_step: Step at which a module that was trained before goes on, with a new warm-up.
        checkpoint_every: Steps between checkpoints; there is also one every ten minutes.
        on_checkpoint: Function called every `checkpoint_every` steps, with the averaged weights.
    """
    folder = build / f"{name}-{steps}"  # a changed number of steps starts a new training
    optimizer = optimizer_class(groups, betas=betas, weight_decay=weight_decay, fused=True)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    ema = Ema(parameters, ema_decay) if ema_decay else None
    peaks, saved = [group["lr"] for group in optimizer.param_groups], time.monotonic()
    first = _restore(folder, module, optimizer, ema) or first_step  # also restores learning rates
    factor = partial(_factor, schedule, steps, first_step, warmup_steps)
    bar = tqdm(range(first, steps), initial=first, total=steps, desc=name, mininterval=5)
    for step in _updates(bar, optimizer, peaks, losses_at, factor, clip, folder):
        if ema:
            ema.update(step)
        done = step + 1
        judged = done % checkpoint_every == 0 or done == steps
        if judged or time.monotonic() - saved > _SAVE_EVERY_S:
            saved = _save(folder, module, optimizer, ema, done)
        if judged and on_checkpoint:
            _judge(folder, on_checkpoint, ema, done)
    if ema:
        ema.swap()


def _factor(
    schedule: Callable[[float], float], steps: int, first_step: int, warmup_steps: int, step: int
) -> float:
    """Return the factor on the learning rates at a step: warm-up times schedule."""
    return min(1.0, (step + 1 - first_step) / warmup_steps) * schedule(step / steps)


def _updates(
    bar: tqdm,
    optimizer: torch.optim.Optimizer,
    peaks: list[float],
    losses_at: Callable[[int], Losses],
    factor: Callable[[int], float],
    clip: float,
    folder: Path,
) -> Iterator[int]:
    """Yield each step after its optimizer step; log mean losses every 100 steps."""
    sums: dict[str, Tensor] = {}
    count, started = 0, time.monotonic()
    for step in bar:
        for group, peak in zip(optimizer.param_groups, peaks, strict=True):
            group["lr"] = peak * factor(step)
        torch.manual_seed(step)
        losses = losses_at(step)
        losses["loss"].backward()
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        losses["grad_norm"] = nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        optimizer.zero_grad()
        for key, value in losses.items():
            sums[key] = sums.get(key, torch.zeros(())) + value.detach().float().cpu()
        done, count = step + 1, count + 1
        if done % 100 == 0:
            record = {key: round(value.item() / count, 5) for key, value in sums.items()}
            sums.clear()
            count = 0
            bar.set_postfix(loss=record["loss"])
            _log(folder, {"step": done, "seconds": round(time.monotonic() - started, 1)} | record)
        yield step


def _judge(
    folder: Path,
    on_checkpoint: Callable[[int], Mapping[str, object]],
    ema: Ema | None,
    step: int,
) -> None:
    """Log the judgement of a checkpoint, with the averaged weights in place."""
    if ema:
        ema.swap()
    _log(folder, {"step": step, **on_checkpoint(step)})
    if ema:
        ema.swap()


def _log(folder: Path, record: Mapping[str, object]) -> None:
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(record) + "\n")


def _save(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None, step: int
) -> float:
    """Write a checkpoint and return the time."""
    state = {
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "ema": ema.shadow if ema else None,
        "step": step,
    }
    with drafted(folder / "state.pt") as draft:
        torch.save(state, draft)
    return time.monotonic()


def _restore(
    folder: Path, module: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema | None
) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "state.pt").exists():
        return 0
    state = torch.load(folder / "state.pt", map_location=device())
    module.load_state_dict(state["module"])
    optimizer.load_state_dict(state["optimizer"])
    if ema:
        ema.shadow = state["ema"]
    return state["step"]
