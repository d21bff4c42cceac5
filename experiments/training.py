"""Trains with transformers' Trainer: two learning rates, exact resume, time and memory."""

# The Trainer accepts more types than its annotations say.
# pyright: reportArgumentType=false

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import AdaLoraModel, PeftModel
from torch import nn
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import ExportableState
from transformers.trainer_utils import EvalPrediction, get_last_checkpoint

from experiments.memory import forget_peak_memory
from experiments.methods import in_head
from experiments.recipe import Recipe
from trainer.training.memory import peak_memory_mib

CHECKPOINT_SECONDS = 60.0
"""Time between checkpoints: a killed training loses this and its current epoch at most."""


Rows = Dataset | torch.utils.data.Dataset[Any]
"""Training rows: a table, or rows made on demand."""


@dataclass(frozen=True)
class Fitted:
    """The result of a training.

    Attributes:
        history: Evaluations by epoch.
        losses: Mean loss of each epoch.
        train_seconds: Seconds of training, without evaluation.
        peak_memory_mib: Peak memory while training.
    """

    history: list[dict[str, float]]
    losses: list[float]
    train_seconds: float
    peak_memory_mib: float

    def reported(self, metric: str, report: str) -> dict[str, float]:
        """Return the evaluation to report: the last one, or the best by `metric`."""
        if report == "best":
            return max(self.history, key=lambda point: point[metric])
        return self.history[-1]


class _Conductor(TrainerCallback, ExportableState):
    """Decides when to evaluate and save; counts seconds of training, also over restarts."""

    def __init__(self, every: int = 1, seconds: float = 0.0) -> None:
        self.every, self.seconds = every, seconds
        self.started, self.saved = 0.0, time.monotonic()

    def state(self) -> dict[str, Any]:
        return {"args": {"every": self.every, "seconds": self.seconds}, "attributes": {}}

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        self.started = time.monotonic()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        now = time.monotonic()
        self.seconds += now - self.started
        epoch = round(state.epoch or 0)
        if self.every:
            control.should_evaluate = epoch == args.num_train_epochs or epoch % self.every == 0
        if now - self.saved >= CHECKPOINT_SECONDS:
            control.should_save, self.saved = True, now


class _Trainer(Trainer):
    """Saves and restores exactly the trained parameters.

    The Trainer's own checkpoints use `save_pretrained`. There PEFT cuts AdaLoRA's matrices and
    loses the importance of ranks, and transformers renames weights only on saving.
    """

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        assert output_dir is not None
        assert self.model is not None
        Path(output_dir).mkdir(parents=True, exist_ok=True)
        kept = {n: p.detach() for n, p in self.model.named_parameters() if p.requires_grad}
        state = {"trained": kept, "allocation": _allocation(self.model)}
        torch.save(state, Path(output_dir) / _STATE)

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        file = Path(resume_from_checkpoint) / _STATE
        state = torch.load(file, map_location=self.args.device, weights_only=True)
        assert self.model is not None
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for name, value in state["trained"].items():
                trained[name].copy_(value)
        if adalora := _adalora(self.model):
            pattern, importance = state["allocation"]
            adalora.peft_config[adalora.trainable_adapter_name].rank_pattern = pattern
            vars(adalora.rankallocator).update(importance)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:  # noqa: ANN401  a loss, or a loss and outputs
        """Return the loss; in training add AdaLoRA's regularizer, which PeftModel omits."""
        found = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        adalora = _adalora(self.model)
        if adalora is None or return_outputs:
            return found
        weight = adalora.peft_config[adalora.trainable_adapter_name].orth_reg_weight
        return found + weight * _orthogonality(adalora)

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Return 0: the estimate is unused, and visits all modules at every step."""
        return 0


_STATE, _IMPORTANCE = "state.pt", ("ipt", "exp_avg_ipt", "exp_avg_unc")


def _adalora(model: nn.Module | None) -> Any:  # noqa: ANN401  PEFT does not type its allocator
    """Return PEFT's AdaLoRA model; None for other methods."""
    inner = model.base_model if isinstance(model, PeftModel) else None
    return inner if isinstance(inner, AdaLoraModel) else None


def _allocation(model: nn.Module | None) -> tuple[Any, dict[str, Any]] | None:
    """Return AdaLoRA's pruned ranks, and the importance of the others."""
    if (adalora := _adalora(model)) is None:
        return None
    pattern = adalora.peft_config[adalora.trainable_adapter_name].rank_pattern
    return pattern, {name: getattr(adalora.rankallocator, name) for name in _IMPORTANCE}


def _orthogonality(adalora: nn.Module) -> torch.Tensor:
    """Return how far AdaLoRA's factors are from orthogonal: mean ‖Pᵀ P - I‖_F and ‖Q Qᵀ - I‖_F.

    Source: Zhang et al., "AdaLoRA: Adaptive Budget Allocation", 2023, Eq. (4).
    """
    norms = []
    for name, factor in adalora.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            gram = factor @ factor.T if "lora_A" in name else factor.T @ factor
            norms.append(torch.linalg.matrix_norm(gram - torch.eye(len(gram)).to(gram)))
    return torch.stack(norms).mean()


class _Reallocation(TrainerCallback):
    """Lets AdaLoRA move its ranks after the optimizer step, while gradients exist."""

    def on_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **_: object,
    ) -> None:
        _adalora(model).update_and_allocate(state.global_step + 1)


# Nine parameters: the parts of a training that every kind of experiment fills differently.
def fit(
    model: nn.Module,
    recipe: Recipe,
    train: Rows,
    test: Rows | None,
    *,
    head: Sequence[str],
    seed: int,
    work: Path,
    collate: Callable[[list[Any]], dict[str, Any]],
    score: Callable[[EvalPrediction], Mapping[str, float]] | None = None,
) -> Fitted:
    """Train a model that `adapt` prepared, from its last checkpoint in `work` if there is one.

    Args:
        model: Model whose trained parameters require gradients.
        recipe: Training options.
        train: Training rows, in a new order every epoch.
        test: Rows to evaluate on, at the epochs of the recipe; None for no evaluation.
        head: Modules with their own learning rate.
        seed: Seed of order and augmentation.
        work: Folder for checkpoints.
        collate: Function from rows to a batch of model arguments, including `labels`.
        score: Function from predictions to scores by name.
    """
    arguments = _arguments(recipe, seed, work)
    every = recipe.epochs if recipe.report == "last" else recipe.evaluate_every
    conductor = _Conductor(0 if test is None else every)
    callbacks: list[TrainerCallback] = [conductor]
    if _adalora(model):
        callbacks.append(_Reallocation())
    trainer = _Trainer(
        model=model,
        args=arguments,
        train_dataset=train,
        eval_dataset=test,
        data_collator=collate,
        compute_metrics=None if score is None else (lambda outcome: dict(score(outcome))),
        optimizers=(_optimizer(model, recipe, head), None),
        callbacks=callbacks,
    )
    trainer.remove_callback(PrinterCallback)  # the runner prints one line per run
    # The loss of a batch is the mean over its micro batches. By default the Trainer would sum them,
    # because it assumes losses weighted by the labels of the batch; RoBERTa's are not.
    trainer.model_accepts_loss_kwargs = False
    forget_peak_memory()
    trainer.train(resume_from_checkpoint=_last_checkpoint(work))
    peak_mib = peak_memory_mib()
    conductors = [c for c in trainer.callback_handler.callbacks if isinstance(c, _Conductor)]
    history = [
        {key.removeprefix("eval_"): value for key, value in entry.items() if _is_score(key)}
        for entry in trainer.state.log_history
        if "eval_loss" in entry
    ]
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return Fitted(history, losses, conductors[0].seconds, peak_mib)


def _last_checkpoint(work: Path) -> str | None:
    """Return the last complete checkpoint, and delete later ones that a kill interrupted.

    The Trainer writes its own state last.
    """
    while work.is_dir() and (last := get_last_checkpoint(str(work))):
        try:
            json.loads((Path(last) / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
            return last
        except (OSError, ValueError):
            shutil.rmtree(last)
    return None


def total_steps(recipe: Recipe, rows: int) -> int:
    """Return the number of optimizer steps, as the Trainer counts them."""
    micro = recipe.micro_batch_size or recipe.batch_size
    batches = -(-rows // micro)
    return recipe.epochs * max(1, -(-batches // (recipe.batch_size // micro)))


def _arguments(recipe: Recipe, seed: int, work: Path) -> TrainingArguments:
    micro = recipe.micro_batch_size or recipe.batch_size
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(work),
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=4 * micro,
        gradient_accumulation_steps=recipe.batch_size // micro,
        num_train_epochs=recipe.epochs,
        warmup_steps=recipe.warmup_steps or recipe.warmup_ratio,
        lr_scheduler_type=recipe.lr_scheduler,
        max_grad_norm=recipe.max_grad_norm,
        bf16=recipe.precision == "bf16",
        fp16=recipe.precision == "fp16",
        seed=seed,
        eval_strategy="no",  # _Conductor decides
        save_strategy="no",
        save_total_limit=1,
        restore_callback_states_from_checkpoint=True,
        logging_strategy="epoch",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_pin_memory=on_gpu,
        dataloader_num_workers=4 if on_gpu else 0,
        use_cpu=not on_gpu,
    )


def _optimizer(model: nn.Module, recipe: Recipe, head: Sequence[str]) -> torch.optim.Optimizer:
    """Return AdamW; biases and norm weights do not decay, as usual in transformers."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    plain = {
        f"{name}.{own}" if name else own
        for name, module in model.named_modules()
        for own, _ in module.named_parameters(recurse=False)
        if own == "bias" or "norm" in type(module).__name__.lower()
    }
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((in_head(name, head), name in plain), []).append(parameter)
    head_rate = recipe.head_learning_rate
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "lr": head_rate if of_head and head_rate is not None else recipe.learning_rate,
                "weight_decay": 0.0 if is_plain else recipe.weight_decay,
            }
            for (of_head, is_plain), parameters in groups.items()
        ]
    )


def _is_score(key: str) -> bool:
    return key == "epoch" or (
        key.startswith("eval_") and not key.endswith(("_per_second", "_runtime", "_time"))
    )
