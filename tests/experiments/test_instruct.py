"""Instruction tuning: labels of the loss, training, and exact resume."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from experiments import training
from experiments.bases.llama import build_tokenizer
from experiments.config import Run
from experiments.kinds import instruct, perform
from experiments.kinds.instruct.alpaca import IGNORED, collator, encode, prompt
from experiments.recipe import Recipe
from loldu.errors import LoLDUError

ROWS = [
    {"instruction": "Name the color.", "input": f"A {color} {thing}.", "output": color}
    for color in ("red", "blue", "green")
    for thing in ("car", "star", "toy", "house")
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA of two layers with random weights."""
    folder = tmp_path_factory.mktemp("base")
    tokenizer = build_tokenizer([prompt(r["instruction"], r["input"]) for r in ROWS], 400)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture
def tokenizer(base: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(base)


def test_alpacas_two_prompts() -> None:
    assert prompt("Count.", "1 2").endswith(
        "request.\n\n### Instruction:\nCount.\n\n### Input:\n1 2\n\n### Response:\n"
    )
    assert prompt("Count.").endswith("request.\n\n### Instruction:\nCount.\n\n### Response:\n")
    assert ("an input" in prompt("Count.", "1")) != ("an input" in prompt("Count."))


def test_the_loss_counts_answers_or_all(tokenizer: PreTrainedTokenizerBase) -> None:
    row = ROWS[0]
    asked = tokenizer(prompt(row["instruction"], row["input"])).input_ids
    answers = encode(row, tokenizer, max_length=128, train_on_inputs=False)
    every = encode(row, tokenizer, max_length=128, train_on_inputs=True)
    assert answers["input_ids"] == every["input_ids"]
    assert every["labels"] == [IGNORED, *every["input_ids"][1:]]
    assert answers["labels"][: len(asked)] == [IGNORED] * len(asked)
    assert tokenizer.decode(answers["labels"][len(asked) :]) == "red</s>"
    short = encode(row, tokenizer, max_length=len(asked) + 1, train_on_inputs=False)
    assert [len(ids) for ids in short.values()] == [len(asked) + 1] * 2
    assert short["input_ids"][-1] != tokenizer.eos_token_id


def test_a_batch_is_padded_on_the_left_and_labelled_where_answers_are() -> None:
    def row(*ids: int, asked: int) -> dict[str, list[int]]:
        return {"input_ids": list(ids), "labels": [IGNORED] * asked + list(ids[asked:])}

    collate = collator(9)
    batch = collate([row(1, 2, 3, 4, asked=3), row(5, 6, asked=1)])
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4], [9, 9, 5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert batch["logits_to_keep"] == 2  # the last token is foretold from the one before
    assert batch["labels"].tolist() == [[IGNORED, 4], [IGNORED, 6]]
    every = collate([row(1, 2, 3, asked=1), row(4, 5, asked=1)])
    assert (every["logits_to_keep"], every["labels"].shape) == (3, (2, 3))
    cut_short = collate([row(1, 2, asked=2)])
    assert (cut_short["logits_to_keep"], cut_short["labels"].tolist()) == (1, [[IGNORED]])


@pytest.mark.parametrize("train_on_inputs", [False, True])
def test_the_loss_of_a_batch_is_the_mean_over_the_labels_of_its_rows(
    base: Path, tokenizer: PreTrainedTokenizerBase, train_on_inputs: bool
) -> None:
    rows = [
        encode(row, tokenizer, max_length=128, train_on_inputs=train_on_inputs)
        for row in (*ROWS[:2], {"instruction": "Say it twice.", "input": "", "output": "red red"})
    ]
    assert len({len(row["input_ids"]) for row in rows}) > 1
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    assert isinstance(tokenizer.pad_token_id, int)
    with torch.no_grad():
        found = model(**collator(tokenizer.pad_token_id)(rows)).loss
        losses = []
        for row in rows:
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
            labels = torch.tensor(row["labels"][1:])
            losses.append(torch.nn.functional.cross_entropy(logits, labels, reduction="none"))
    counted = torch.cat([loss[loss != 0] for loss in losses])
    torch.testing.assert_close(found, counted.mean())


class Asked:
    """Stand-in for lm-eval: counts the rows that a model answers correctly."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fails_at: str | None = None

    def __call__(self, model: Any, tokenizer: Any, name: str, **_: object) -> float:  # noqa: ANN401
        self.names.append(name)
        if name == self.fails_at:
            raise KeyboardInterrupt
        right = 0
        for row in ROWS:
            ids = tokenizer(prompt(row["instruction"], row["input"]), return_tensors="pt").input_ids
            with torch.no_grad():
                best = model(input_ids=ids).logits[0, -1].argmax()
            right += row["output"].startswith(tokenizer.decode(best))
        return 100 * right / len(ROWS)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    data = DatasetDict({"train": Dataset.from_list(ROWS)})
    monkeypatch.setattr(instruct, "load_data", lambda name: data)
    evaluation = Asked()
    monkeypatch.setattr(instruct, "evaluate", evaluation)
    return evaluation


def _run(base: Path, method: str = "lora", options: dict[str, Any] | None = None) -> Run:
    recipe = Recipe(
        learning_rate=2e-2 if method == "lora" else 1e-2,
        batch_size=4,
        micro_batch_size=2,
        epochs=8,
        tasks="pocket",
    )
    given = {"r": 4, "target_modules": ["q_proj", "v_proj", "down_proj", "gate_proj"]}
    return Run(
        *("instruct", "pocket", "row", "data", 0, str(base), method),
        options=given if options is None else options,
        recipe=recipe,
    )


def test_a_run_learns_and_records_its_facts(base: Path, asked: Asked, tmp_path: Path) -> None:
    plain = perform("instruct", _run(base, "none", {}), tmp_path / "none")
    assert (plain.parameters, plain.train_seconds, plain.history) == (0, 0.0, [])
    tuned = perform("instruct", _run(base, "ft", {}), tmp_path / "ft")
    assert tuned.score > plain.score + 30
    assert set(tuned.scores) == {"mmlu", "drop", "humaneval", "bbh"}
    model = AutoModelForCausalLM.from_pretrained(base)
    assert tuned.parameters == sum(p.numel() for p in model.parameters())
    assert tuned.train_seconds > 0
    assert tuned.facts["rows"] == {"train": 12}
    assert tuned.facts["base"] == plain.facts["base"]


def test_a_run_killed_in_training_resumes_exactly(
    base: Path, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    run = _run(base)
    whole = perform("instruct", run, tmp_path / "whole")
    batches = 0

    def until_killed(padding_id: int) -> Any:  # noqa: ANN401
        def collate(rows: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
            nonlocal batches
            batches += 1
            if batches == 6 * 3 + 4:  # of six batches an epoch
                raise KeyboardInterrupt
            return collator(padding_id)(rows)

        return collate

    with monkeypatch.context() as patch:
        patch.setattr(instruct, "collator", until_killed)
        with pytest.raises(KeyboardInterrupt):
            perform("instruct", run, tmp_path / "killed")
    assert list((tmp_path / "killed").glob("checkpoint-*"))
    resumed = perform("instruct", run, tmp_path / "killed")
    assert resumed.scores == whole.scores
    one, other = (torch.load(tmp_path / n / "trained.pt") for n in ("whole", "killed"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_killed_in_evaluation_repeats_neither_training_nor_answers(
    base: Path, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = _run(base)
    whole = perform("instruct", run, tmp_path / "whole")
    asked.names.clear()
    asked.fails_at = "humaneval"
    with pytest.raises(KeyboardInterrupt):
        perform("instruct", run, tmp_path / "killed")
    asked.fails_at = None
    monkeypatch.setattr(instruct, "fit", lambda *_, **__: pytest.fail("trained twice"))
    resumed = perform("instruct", run, tmp_path / "killed")
    assert asked.names == ["mmlu", "drop", "humaneval", "humaneval", "bbh"]
    assert resumed.scores == whole.scores


def test_mistakes_are_reported(base: Path, asked: Asked, tmp_path: Path) -> None:
    run = _run(base)
    with pytest.raises(LoLDUError, match="no tasks stok"):
        perform("instruct", replace(run, recipe=replace(run.recipe, tasks="stok")), tmp_path)
    with pytest.raises(LoLDUError, match="The model /nowhere is neither a local folder"):
        perform("instruct", replace(run, model="/nowhere"), tmp_path)
