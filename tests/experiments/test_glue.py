"""The kind `glue`: training, exact resume, the literature's scores, counts of parameters."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from torch import nn
from transformers import (
    DataCollatorWithPadding,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
)
from transformers.trainer_utils import EvalPrediction

from experiments import training
from experiments.bases.roberta import build_tokenizer
from experiments.bases.texts.reading import texts
from experiments.config import Run, read_experiment
from experiments.data import Entry, entry
from experiments.kinds import glue
from experiments.methods import adapt, count_parameters
from experiments.recipe import Recipe
from loldu.errors import LoLDUError

HEAD = ("classifier",)
COLORS = ("red", "blue")
Data = dict[str, DatasetDict]


def rows(count: int, label: object, names: tuple[str, ...], first: int = 0) -> Dataset:
    """The label is whether the first sentence has the color red."""
    made: list[dict[str, object]] = []
    for i in range(first, first + count):
        row: dict[str, object] = {n: f"a {COLORS[i % 2]} toy{' on sand' * (i % 3)}." for n in names}
        made.append(row | {"label": int(i % 2 == 0)})
    features = Features({n: Value("string") for n in names} | {"label": label})
    return Dataset.from_list(made, features=features)


def two_splits(label: object, names: tuple[str, ...] = ("sentence1", "sentence2")) -> DatasetDict:
    return DatasetDict(train=rows(32, label, names), test=rows(12, label, names, first=1))


@pytest.fixture
def base(tmp_path: Path) -> str:
    """Return the folder of a tiny encoder with a tokenizer of the pocket world."""
    folder = tmp_path / "base"
    tokenizer = build_tokenizer(texts(500, seed=0), vocabulary=400)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=50,
        type_vocab_size=1,
        initializer_range=0.2,
    )
    RobertaForMaskedLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch) -> Data:
    """Return three tasks by their metric."""
    made = {
        "accuracy": two_splits(ClassLabel(names=["no", "yes"])),
        "matthews": two_splits(ClassLabel(names=["no", "yes"]), ("sentence1",)),
        "pearson": two_splits(Value("float32")),
    }

    def as_entry(name: str) -> Entry:
        return Entry(name, name, "ours", extra={"metric": name.removeprefix("no ")})

    monkeypatch.setattr(glue, "load_data", made.__getitem__)
    monkeypatch.setattr(glue, "entry", as_entry)
    glue._encoded.cache_clear()
    return made


def a_run(base: str, data: str, method: str = "loldu", seed: int = 0) -> Run:
    options = {"loldu": {"r": 16}, "lora": {"r": 2}}.get(method, {})
    recipe = Recipe(
        learning_rate=2e-2,
        head_learning_rate=1e-2,
        batch_size=8,
        epochs=6,
        report="best",
        max_length=48,
        warmup_ratio=0.06,
    )
    return Run("glue", "pocket", method, data, seed, base, method, options, recipe)


@pytest.mark.parametrize("metric", ["accuracy", "matthews", "pearson"])
@pytest.mark.parametrize("method", ["loldu", "ft"])
def test_a_run_learns(method: str, metric: str, base: str, data: Data, tmp_path: Path) -> None:
    run = a_run(base, metric, method)
    run = replace(run, recipe=replace(run.recipe, epochs=30))
    outcome = glue.run(run, tmp_path / "work")
    assert outcome.score > 85
    assert outcome.score == outcome.scores[metric] == max(p[metric] for p in outcome.history)
    assert [point["epoch"] for point in outcome.history] == [*range(1, 31)]
    outputs = 1 if metric == "pearson" else 2
    assert outcome.head_parameters == 16 * 16 + 16 + 16 * outputs + outputs
    if method == "loldu":
        assert outcome.parameters == 4 * (16 + 1)  # q and v of two layers
    assert outcome.facts["rows"] == {"train": 32, "test": 12}
    assert len(outcome.losses) == 30


def test_the_seed_decides_and_repeats(base: str, data: Data, tmp_path: Path) -> None:
    runs = [glue.run(a_run(base, "pearson", "lora", s), tmp_path / "w") for s in (0, 0, 1)]
    assert runs[0].history == runs[1].history
    assert runs[0].history != runs[2].history


@pytest.mark.parametrize("method", ["loldu", "pissa"])
def test_a_killed_run_resumes_exactly(
    method: str, base: str, data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    run = a_run(base, "accuracy", method)
    run = replace(run, options={"r": 4})
    expected = glue.run(run, tmp_path / "whole")

    class Killed(Exception):
        pass

    class UntilKilled(DataCollatorWithPadding):
        batches = 0

        def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
            UntilKilled.batches += 1
            if UntilKilled.batches == 3 * (4 + 1) + 2:  # in the fourth epoch
                raise Killed
            return super().__call__(features)

    with monkeypatch.context() as patched:
        patched.setattr(glue, "DataCollatorWithPadding", UntilKilled)
        with pytest.raises(Killed):
            glue.run(run, tmp_path / "killed")
    assert list((tmp_path / "killed").glob("checkpoint-*"))
    resumed = glue.run(run, tmp_path / "killed")
    assert resumed.history == expected.history
    assert resumed.score == expected.score


def test_scores_are_those_of_the_definitions() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 50)
    logits = rng.normal(size=(50, 2)) + np.eye(2)[labels]
    said = logits.argmax(1)
    tp, tn, fp, fn = (
        float(((said == a) & (labels == b)).sum()) for a, b in ((1, 1), (0, 0), (1, 0), (0, 1))
    )
    found = glue._scores("accuracy", EvalPrediction(logits, labels))
    assert found == pytest.approx(
        {"accuracy": 2 * (tp + tn), "f1": 100 * 2 * tp / (2 * tp + fp + fn)}
    )
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    found = glue._scores("matthews", EvalPrediction(logits, labels))
    assert found["matthews"] == pytest.approx(100 * (tp * tn - fp * fn) / below**0.5)
    score = rng.normal(size=50)
    guess = score + rng.normal(size=50)
    found = glue._scores("pearson", EvalPrediction(guess[:, None], score))
    assert found["pearson"] == pytest.approx(100 * np.corrcoef(guess, score)[0, 1])
    constant = glue._scores("pearson", EvalPrediction(np.ones((50, 1)), score))
    assert constant == {"pearson": 0.0, "spearman": 0.0}
    diverged = glue._scores("pearson", EvalPrediction(np.full((50, 1), np.nan), score))
    assert diverged == constant


def test_three_classes_have_no_f1() -> None:
    logits = np.eye(3)[[0, 1, 2, 2]]
    found = glue._scores("accuracy", EvalPrediction(logits, np.array([0, 1, 2, 0])))
    assert found == {"accuracy": 75.0}


def test_a_dataset_without_a_metric_is_reported(data: Data, base: str, tmp_path: Path) -> None:
    with pytest.raises(LoLDUError, match="needs one of accuracy, matthews, pearson"):
        glue.run(a_run(base, "no metric"), tmp_path)


def test_a_missing_base_is_reported(data: Data, tmp_path: Path) -> None:
    with pytest.raises(LoLDUError, match=r"The model \./no/such is neither a local") as error:
        glue.run(a_run("./no/such", "accuracy"), tmp_path)
    assert "\n" not in str(error.value)


def test_test_rows_are_sorted_by_length(base: str, data: Data) -> None:
    encoded = glue._encoded("accuracy", base, 48)
    lengths = [len(ids) for ids in encoded["test"]["input_ids"]]
    assert lengths == sorted(lengths)
    assert sorted(encoded["test"]["label"]) == sorted(data["accuracy"]["test"]["label"])


def roberta_base() -> RobertaForSequenceClassification:
    """Return a model of the true shape that needs no memory."""
    config = RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, num_labels=2
    )
    with torch.device("meta"):
        return RobertaForSequenceClassification(config)


HEAD_PARAMETERS = 768 * 768 + 768 + 2 * 768 + 2
# 12 layers, 768 wide, query and value: the arithmetic of the papers.
COUNTS = {
    "ft": 124_647_170 - HEAD_PARAMETERS,
    "bitfit": 12 * (4 * 768 + 3072 + 768 + 2 * 768) + 768,
    "lora": 12 * 2 * 8 * (768 + 768),
    "pissa": 12 * 2 * 8 * (768 + 768),
    "vera": 12 * 2 * (1024 + 768),
    "loldu": 12 * 2 * 768 + 24,
    "svfit": 12 * 2 * 768 + 24,
}
COUNTED = {"bitfit": 102_144, "lora": 294_912, "vera": 43_008, "loldu": 18_456, "svfit": 18_456}


@pytest.mark.parametrize("method", COUNTS)
def test_parameters_at_full_scale(method: str) -> None:
    experiment = read_experiment("glue")
    run = next(experiment.runs(experiment.row(method), "full"))
    assert run.method == method
    options = dict(run.options)
    if method == "pissa":  # its factors need weights; its shape is LoRA's
        options["init_lora_weights"] = False
    model: nn.Module = adapt(roberta_base(), method, options, head=HEAD, seed=0)
    assert count_parameters(model, HEAD) == (COUNTS[method], HEAD_PARAMETERS)
    assert COUNTS[method] == COUNTED.get(method, COUNTS[method])


def test_pissas_number_is_a_percentage() -> None:
    """PEFT counts the head twice: once frozen, once trained."""
    trained = COUNTS["pissa"] + HEAD_PARAMETERS
    everything = 124_647_170 + trained
    assert (trained, everything) == (887_042, 125_534_212)
    assert round(100 * trained / everything, 3) == 0.707


@pytest.mark.parametrize("name", ["glue", "glue_large"])
def test_every_task_is_described(name: str) -> None:
    experiment = read_experiment(name)
    for at in experiment.scales.values():
        for data in at.data:
            found = entry(data)
            assert found.extra["metric"] in glue.METRICS
            assert found.generator or set(found.splits) == {"train", "test"}
