"""Sentence classification and similarity: an encoder with a head, on one GLUE task at a time."""

# Metrics and features are typed by their libraries in part only.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
from datasets import ClassLabel, DatasetDict
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)
from transformers.trainer_utils import EvalPrediction

from experiments.config import Run
from experiments.data import data_facts, entry, load_data
from experiments.kinds.classify import classify
from experiments.outcome import Outcome
from experiments.pretrained import fetching
from loldu.errors import LoLDUError


def run(run: Run, work: Path) -> Outcome:
    """Train and evaluate one task.

    Raises:
        LoLDUError: If the data or the base is unavailable, or the method is invalid.
    """
    metric = _metric(run.data)
    rows = load_data(run.data)
    labels = rows["train"].features["label"]
    return classify(
        run,
        work,
        AutoModelForSequenceClassification,
        _encoded(run.data, run.model, run.recipe.max_length),
        num_labels=labels.num_classes if isinstance(labels, ClassLabel) else 1,
        facts=data_facts(rows),
        collate=DataCollatorWithPadding(AutoTokenizer.from_pretrained(run.model)),
        score=partial(_scores, metric),
        metric=metric,
    )


def _metric(data: str) -> str:
    metric = str(entry(data).extra.get("metric"))
    if metric not in METRICS:
        raise LoLDUError(
            f"The entry {data} in datasets/ has the metric {metric}; a sentence task needs one of "
            f"{', '.join(METRICS)}."
        )
    return metric


@cache
def _encoded(data: str, model: str, max_length: int) -> DatasetDict:
    """Return the rows of a task as token ids; test rows by length, to save padding."""
    with fetching(model):
        tokenizer = AutoTokenizer.from_pretrained(model)
    rows = load_data(data)

    def encode(batch: dict[str, list[str]]) -> Mapping[str, object]:
        pair = [batch[name] for name in ("sentence1", "sentence2") if name in batch]
        return tokenizer(*pair, truncation=True, max_length=max_length)

    texts = [name for name in rows["train"].column_names if name != "label"]
    encoded = rows.map(encode, batched=True, remove_columns=texts)
    lengths = np.array([len(ids) for ids in encoded["test"]["input_ids"]])
    encoded["test"] = encoded["test"].select(np.argsort(lengths, kind="stable"))
    return encoded


def _scores(metric: str, outcome: EvalPrediction) -> dict[str, float]:
    """Return all scores of a task in percent, including `metric`."""
    logits, labels = np.asarray(outcome.predictions), np.asarray(outcome.label_ids)
    scores = METRICS[metric](logits[:, 0] if logits.shape[1] == 1 else logits.argmax(1), labels)
    return {name: 100.0 * float(value) for name, value in scores.items()}


def _classified(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    scores = {"accuracy": accuracy_score(labels, predicted)}
    if labels.max() < 2:
        scores["f1"] = f1_score(labels, predicted, zero_division=0)
    return scores


def _correlated(predicted: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return correlations with the true scores; 0 for constant or invalid predictions."""
    if not np.isfinite(predicted).all() or np.ptp(predicted) == 0:
        return {"pearson": 0.0, "spearman": 0.0}
    return {
        "pearson": pearsonr(predicted, labels).statistic,
        "spearman": spearmanr(predicted, labels).statistic,
    }


METRICS: Mapping[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "accuracy": _classified,
    "matthews": lambda predicted, labels: {
        "matthews": matthews_corrcoef(labels, predicted),
        "accuracy": accuracy_score(labels, predicted),
    },
    "pearson": _correlated,
}
"""Metric of a manifest entry -> function of predictions and labels."""
