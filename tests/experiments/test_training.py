from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import nn
from transformers import (
    RobertaConfig,
    RobertaForSequenceClassification,
    ViTConfig,
    ViTForImageClassification,
)
from transformers.trainer_utils import EvalPrediction

from experiments import training
from experiments.methods import adapt
from experiments.recipe import Recipe
from experiments.training import Fitted, fit, total_steps

ROWS = Dataset.from_list([{"index": i} for i in range(24)])
HEAD = ["classifier"]


def base() -> ViTForImageClassification:
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=16,
        patch_size=8,
        num_labels=3,
        hidden_dropout_prob=0.1,  # so that a resumed run must restore its random state
    )
    return ViTForImageClassification(config)


def collate(rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
    pictures = torch.randn(24, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    index = torch.tensor([row["index"] for row in rows])
    pixels = pictures[index] + (index % 3).view(-1, 1, 1, 1)
    return {"pixel_values": pixels, "labels": index % 3}


def accuracy(predicted: EvalPrediction) -> dict[str, float]:
    return {"accuracy": 100.0 * (predicted.predictions.argmax(-1) == predicted.label_ids).mean()}


def train(model: nn.Module, recipe: Recipe, work: Path) -> Fitted:
    return fit(
        model, recipe, ROWS, ROWS, head=HEAD, seed=5, work=work, collate=collate, score=accuracy
    )


RECIPE = Recipe(learning_rate=2e-2, batch_size=8, epochs=6, report="best")


@pytest.mark.parametrize("method", ["loldu", "ft", "lora"])
def test_training_lowers_the_loss(method: str, tmp_path: Path) -> None:
    model = adapt(base(), method, {} if method == "ft" else {"r": 4}, head=HEAD, seed=0)
    fitted = train(model, RECIPE, tmp_path)
    assert [point["epoch"] for point in fitted.history] == [1, 2, 3, 4, 5, 6]
    assert fitted.history[-1]["loss"] < fitted.history[0]["loss"]
    assert len(fitted.losses) == 6
    assert fitted.losses[-1] < fitted.losses[0]
    assert fitted.reported("accuracy", "best")["accuracy"] > 60
    assert fitted.train_seconds > 0
    assert fitted.peak_memory_mib > 0
    assert not list(tmp_path.iterdir())  # no checkpoint of a run that took no minute


def test_last_is_evaluated_once(tmp_path: Path) -> None:
    model = adapt(base(), "lp", {}, head=HEAD, seed=0)
    fitted = train(model, Recipe(batch_size=8, epochs=3), tmp_path)
    assert [point["epoch"] for point in fitted.history] == [3]


def test_best_and_last() -> None:
    fitted = Fitted([{"accuracy": 3.0}, {"accuracy": 5.0}, {"accuracy": 4.0}], [], 1.0, 1.0)
    assert fitted.reported("accuracy", "best")["accuracy"] == 5.0
    assert fitted.reported("accuracy", "last")["accuracy"] == 4.0


@pytest.mark.parametrize("method", ["loldu", "ft", "adalora"])
def test_a_killed_run_resumes_exactly(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)

    def model() -> nn.Module:
        options = {"loldu": {"r": 4}, "ft": {}, "adalora": {"init_r": 4, "target_r": 2}}[method]
        steps = total_steps(RECIPE, len(ROWS))
        return adapt(base(), method, options, head=HEAD, seed=0, total_steps=steps)

    whole = model()
    expected = train(whole, RECIPE, tmp_path / "whole")

    class Killed(Exception):
        pass

    batches = 0

    def until_killed(rows: list[Any]) -> dict[str, torch.Tensor]:
        nonlocal batches
        batches += 1
        if batches == 3 * (3 + 1) + 2:  # in the fourth epoch: each has 3 steps and an evaluation
            raise Killed
        return collate(rows)

    work = tmp_path / "killed"
    with pytest.raises(Killed):
        fit(
            model(),
            RECIPE,
            ROWS,
            ROWS,
            head=HEAD,
            seed=5,
            work=work,
            collate=until_killed,
            score=accuracy,
        )
    assert list(work.glob("checkpoint-*"))
    resumed = model()
    found = train(resumed, RECIPE, work)
    assert found.history == expected.history
    assert found.losses == expected.losses
    for (name, one), (_, other) in zip(
        whole.named_parameters(), resumed.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name


def test_an_incomplete_checkpoint_is_skipped(tmp_path: Path) -> None:
    for step, state in ((3, "{}"), (6, '{"cut'), (9, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert training._last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-3")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-3"]
    assert training._last_checkpoint(tmp_path / "none") is None


SENTENCES = RobertaConfig(
    vocab_size=20,
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    max_position_embeddings=10,
    num_labels=3,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


def sentences(rows: list[dict[str, int]]) -> dict[str, torch.Tensor]:
    index = torch.tensor([row["index"] for row in rows])
    return {"input_ids": 3 + index[:, None].remainder(torch.tensor([3, 5, 7])), "labels": index % 3}


@pytest.mark.parametrize("method", ["lora", "adalora"])
@pytest.mark.parametrize("kind", ["pictures", "sentences"])
def test_the_size_of_micro_batches_changes_nothing(kind: str, method: str, tmp_path: Path) -> None:
    def trained(micro: int | None) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model: Any = RobertaForSequenceClassification(SENTENCES)
        if kind == "pictures":
            model = base()
            model.config.hidden_dropout_prob = 0.0
            for part in model.modules():
                if isinstance(part, nn.Dropout):
                    part.p = 0.0
        options = {"r": 2} if method == "lora" else {"init_r": 3, "target_r": 2}
        adapted = adapt(model, method, options, head=HEAD, seed=0, total_steps=6)
        # SGD, unlike Adam, feels the size of a gradient.
        original = training._optimizer
        training._optimizer = lambda m, r, h: torch.optim.SGD(
            original(m, r, h).param_groups, lr=0.1
        )
        recipe = Recipe(
            learning_rate=0.1, batch_size=8, micro_batch_size=micro, epochs=2, max_grad_norm=0
        )
        collator = collate if kind == "pictures" else sentences
        try:
            fit(
                adapted,
                recipe,
                ROWS,
                None,
                head=HEAD,
                seed=0,
                work=tmp_path / str(micro),
                collate=collator,
            )
        finally:
            training._optimizer = original
        return {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad}

    whole, parts = trained(None), trained(2)
    for name, one in whole.items():
        torch.testing.assert_close(parts[name], one, rtol=1e-4, atol=1e-5, msg=name)


def test_adalora_is_held_to_orthogonal_factors(tmp_path: Path) -> None:
    def unevenness(weight: float) -> float:
        options = {"init_r": 4, "target_r": 3, "orth_reg_weight": weight}
        model = adapt(base(), "adalora", options, head=HEAD, seed=0, total_steps=18)
        train(model, RECIPE, tmp_path / str(weight))
        norms = [
            torch.linalg.matrix_norm(gram - torch.eye(len(gram)))
            for name, factor in model.named_parameters()
            if "lora_A" in name or "lora_B" in name
            for gram in [factor @ factor.T if "lora_A" in name else factor.T @ factor]
        ]
        return torch.stack(norms).detach().mean().item()

    assert unevenness(0.5) < 0.9 * unevenness(0.0)


@pytest.mark.parametrize("method", ["ft", "lp", "bitfit", "lora", "loldu"])
def test_trained_parameters_are_fp32_on_a_half_precision_base(method: str) -> None:
    options = {"r": 2} if method in ("lora", "loldu") else {}
    model = adapt(base().to(torch.bfloat16), method, options, head=HEAD, seed=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert trained
    assert all(p.dtype == torch.float32 for p in trained)


def test_two_learning_rates_and_decay(tmp_path: Path) -> None:
    model = adapt(base(), "ft", {}, head=HEAD, seed=0)
    recipe = Recipe(learning_rate=1e-3, head_learning_rate=1e-1, weight_decay=0.5)
    optimizer = training._optimizer(model, recipe, HEAD)
    names = {id(p): n for n, p in model.named_parameters()}
    settings = {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    assert len(settings) == len(names)
    assert settings["classifier.weight"] == (1e-1, 0.5)
    assert settings["classifier.bias"] == (1e-1, 0.0)
    assert settings["vit.layernorm.weight"] == (1e-3, 0.0)
    attention = next(n for n in settings if n.endswith("v_proj.weight"))
    assert settings[attention] == (1e-3, 0.5)


@pytest.mark.parametrize(("rows", "batch", "micro", "steps"), [(24, 8, 8, 9), (25, 8, 4, 12)])
def test_steps_as_the_trainer_counts(
    rows: int, batch: int, micro: int, steps: int, tmp_path: Path
) -> None:
    recipe = Recipe(batch_size=batch, micro_batch_size=micro, epochs=3)
    assert total_steps(recipe, rows) == steps
    model = adapt(base(), "lp", {}, head=HEAD, seed=0)
    data = Dataset.from_list([{"index": i % 24} for i in range(rows)])
    steps_taken = 0

    class Counted(torch.optim.AdamW):
        def step(self, closure: None = None) -> None:  # pyright: ignore
            nonlocal steps_taken
            steps_taken += 1
            super().step(closure)

    original = training._optimizer
    training._optimizer = lambda m, r, h: Counted(original(m, r, h).param_groups)
    try:
        fit(model, recipe, data, None, head=HEAD, seed=0, work=tmp_path, collate=collate)
    finally:
        training._optimizer = original
    assert steps_taken == steps
