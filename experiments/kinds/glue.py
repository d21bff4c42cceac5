"""Sentence classification and similarity: an encoder with a head, on one GLUE task at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    PreTrainedTokenizerBase,
)
from transformers.trainer_utils import EvalPrediction

from datasets import ClassLabel, Dataset, DatasetDict
from experiments.config import Run
from experiments.data import digest, entry, load_data
from experiments.methods import adapt, count_parameters
from experiments.outcome import Outcome
from experiments.training import fit, total_steps
from trainer.errors import TrainerError

HEAD = ("classifier",)
"""Trained in full by every method, as in Hu et al., "LoRA", and not counted."""

Predicted = Float[np.ndarray, "rows outputs"]


def run(run: Run, work: Path) -> Outcome:
    """Train and evaluate one task.

    Raises:
        TrainerError: The data, the method or the base cannot be.
    """
    metric = _metric(run.data)
    rows = load_data(run.data)
    tokenizer = AutoTokenizer.from_pretrained(run.model)
    encoded = _encode(rows, tokenizer, run.recipe.max_length)
    labels = rows["train"].features["label"]
    num_labels = labels.num_classes if isinstance(labels, ClassLabel) else 1
    torch.manual_seed(run.seed)  # of the head
    base = AutoModelForSequenceClassification.from_pretrained(
        run.model, num_labels=num_labels, dtype=torch.float32
    )
    steps = total_steps(run.recipe, len(encoded["train"]))
    model = adapt(
        base, run.method, run.options, head=HEAD, seed=run.seed, total_steps=steps
    )
    fitted = fit(
        model,
        run.recipe,
        encoded["train"],
        encoded["test"],
        head=HEAD,
        seed=run.seed,
        work=work,
        collate=DataCollatorWithPadding(tokenizer),
        score=lambda outcome: METRICS[metric](*_numbers(outcome)),
    )
    best = max(fitted.history, key=lambda point: point[metric])
    reported = best if run.recipe.report == "best" else fitted.history[-1]
    parameters, head_parameters = count_parameters(model, HEAD)
    return Outcome(
        score=reported[metric],
        scores={name: value for name, value in reported.items() if name != "epoch"},
        history=fitted.history,
        parameters=parameters,
        head_parameters=head_parameters,
        train_seconds=fitted.train_seconds,
        peak_memory_mib=fitted.peak_memory_mib,
        facts={"data": digest(rows), "rows": {name: len(part) for name, part in rows.items()}},
    )
