"""Evaluates a language model with lm-eval, on the project's task files or on lm-eval's own."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from loldu.errors import LoLDUError

FOLDER = Path(__file__).parent / "tasks"
BENCHMARKS = ("mmlu", "drop", "humaneval", "bbh")
STOCK = "stock"
_ALLOWED = "HF_ALLOW_CODE_EVAL"


_STOCK: dict[str, tuple[str, int | None, str]] = {
    "mmlu": ("mmlu", 5, "acc,none"),
    "drop": ("drop", 3, "em,none"),
    "humaneval": ("humaneval", None, "pass@1,create_test"),
    "bbh": ("bbh_fewshot", None, "exact_match,none"),
}
"""lm-eval's own tasks: name, number of examples, and metric."""


def check_tasks(tasks: str) -> None:
    """Check before hours of training that the tasks can run.

    Raises:
        LoLDUError: If the tasks are unknown, or they run code without permission.
    """
    own = sorted(folder.name for folder in FOLDER.iterdir() if (folder / "rows.py").exists())
    if tasks not in (*own, STOCK):
        raise LoLDUError(f"There are no tasks {tasks}: choose from {', '.join((*own, STOCK))}.")
    if _runs_code(tasks) and os.environ.get(_ALLOWED) != "1":
        raise LoLDUError(
            f"HumanEval runs code that the model writes: set {_ALLOWED}=1 to allow it, best in "
            "a container."
        )


def _runs_code(tasks: str) -> bool:
    file = FOLDER / tasks / "humaneval.yaml"
    return tasks == STOCK or "unsafe_code: true" in file.read_text(encoding="utf-8")


def evaluate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    benchmark: str,
    *,
    tasks: str,
    data: str,
    batch_size: int,
    seed: int,
    limit: int | None = None,
) -> float:
    """Return the score of a model on one of `BENCHMARKS`, in percent.

    Args:
        model: Any causal language model of transformers, with or without PEFT.
        tokenizer: Its tokenizer.
        benchmark: A name in `BENCHMARKS`.
        tasks: A folder in `tasks`, or "stock" for lm-eval's own.
        data: Training dataset; the embedded world's evaluations belong to it.
        batch_size: Prompts per batch.
        seed: Seed of sampled answers.
        limit: Number of rows; None for all.
    """
    # lm-eval takes seconds to import.
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager, get_task_dict

    torch.manual_seed(seed)
    wrapped: Any = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)  # type: ignore[arg-type]
    common: Any = {
        "limit": limit,
        "bootstrap_iters": 0,
        "log_samples": False,
        "confirm_run_unsafe_code": _runs_code(tasks),
    }
    if tasks == STOCK:
        task, shots, metric = _STOCK[benchmark]
        simple_evaluate: Any = lm_eval.simple_evaluate  # its decorator hides the arguments
        found = simple_evaluate(
            wrapped, tasks=[task], num_fewshot=shots, torch_random_seed=seed, **common
        )
        return 100 * found["results"][task][metric]
    name = f"{tasks}_{benchmark}"
    manager = TaskManager(
        include_path=str(FOLDER / tasks), include_defaults=False, metadata={"data": data}
    )
    # simple_evaluate would spend seconds on listing installed packages.
    evaluated: Any = lm_eval.evaluate(wrapped, get_task_dict([name], manager), **common)
    return evaluated["results"][name]["score,none"]
