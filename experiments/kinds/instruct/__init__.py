"""Tunes a language model on instructions, and evaluates it on four benchmarks with lm-eval."""

import json
from dataclasses import asdict
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from experiments.config import Run
from experiments.data import data_facts, load_data
from experiments.kinds.instruct.alpaca import collator, encode
from experiments.kinds.instruct.harness import BENCHMARKS, check_tasks, evaluate
from experiments.methods import adapt, count_parameters
from experiments.outcome import Outcome
from experiments.pretrained import facts_of, fetching
from experiments.training import Fitted, fit, total_steps
from loldu.errors import LoLDUError
from loldu.files import write_atomically

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROMPTS_PER_ROW = 2
"""Rows of a generated batch per row of a training batch; generation needs no gradients."""


def run(run: Run, work: Path) -> Outcome:
    """Tune and evaluate; continue an interrupted run in `work`.

    Raises:
        LoLDUError: If the base or the data is unavailable, or the tasks are not allowed.
    """
    recipe = run.recipe
    check_tasks(recipe.tasks)
    data = load_data(run.data)
    tokenizer, base = _tokenizer(run.model), _base(run)
    facts = {**facts_of(base), **data_facts(data)}
    rows = _encoded(run.data, run.model, recipe.max_length, recipe.train_on_inputs)
    steps = total_steps(recipe, len(rows))
    model = adapt(base, run.method, run.options, seed=run.seed, total_steps=steps)
    fitted = _tuned(model, run, rows, tokenizer, work)
    model.eval()
    scores = {name: _score(name, model, tokenizer, run, work) for name in BENCHMARKS}
    return Outcome(
        score=mean(scores.values()),
        scores=scores,
        parameters=count_parameters(model)[0],
        facts=facts,
        **vars(fitted),
    )


def _base(run: Run) -> PreTrainedModel:
    with fetching(run.model):
        model = AutoModelForCausalLM.from_pretrained(run.model, dtype=DTYPES[run.recipe.precision])
    moved: Any = model  # pyright cannot follow the decorator of `to`
    moved.to("cuda" if torch.cuda.is_available() else "cpu")
    return model


@cache
def _tokenizer(model: str) -> Tokenizer:
    with fetching(model):
        tokenizer = AutoTokenizer.from_pretrained(model)
    if tokenizer.pad_token is None:  # LLaMA has none; its authors use this for tuning
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if tokenizer.pad_token is None or tokenizer.eos_token is None:
        raise LoLDUError(f"The tokenizer of {model} has no end-of-text token.")
    return tokenizer


@cache
def _encoded(data: str, model: str, max_length: int, train_on_inputs: bool) -> Dataset:
    """Return the training rows as token ids and labels, encoded once a process."""
    rows, tokenizer = load_data(data)["train"], _tokenizer(model)
    return rows.map(
        lambda row: encode(row, tokenizer, max_length=max_length, train_on_inputs=train_on_inputs),
        remove_columns=rows.column_names,
        load_from_cache_file=False,
    )


def _tuned(model: nn.Module, run: Run, rows: Dataset, tokenizer: Tokenizer, work: Path) -> Fitted:
    """Train, or load what an interrupted run trained: evaluation may take longer."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trained:
        return Fitted([], [], 0.0, 0.0)
    weights, record = work / "trained.pt", work / "trained.json"
    if record.exists():
        kept = torch.load(weights, map_location="cpu", weights_only=True)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(kept[name])
        return Fitted(**json.loads(record.read_text(encoding="utf-8")))
    assert isinstance(tokenizer.pad_token_id, int)
    fitted = fit(
        model,
        run.recipe,
        rows,
        None,
        head=(),
        seed=run.seed,
        work=work,
        collate=collator(tokenizer.pad_token_id),
    )
    work.mkdir(parents=True, exist_ok=True)
    torch.save({name: parameter.detach() for name, parameter in trained.items()}, weights)
    write_atomically(record, json.dumps(asdict(fitted)))
    return fitted


def _score(name: str, model: Any, tokenizer: Tokenizer, run: Run, work: Path) -> float:  # noqa: ANN401
    """Return the score of a benchmark, and store it for a resumed run."""
    file = work / f"{name}.json"
    if file.exists():
        return json.loads(file.read_text(encoding="utf-8"))["score"]
    recipe = run.recipe
    score = evaluate(
        model,
        tokenizer,
        name,
        tasks=recipe.tasks,
        data=run.data,
        seed=run.seed,
        batch_size=PROMPTS_PER_ROW * (recipe.micro_batch_size or recipe.batch_size),
        limit=recipe.limit,
    )
    write_atomically(file, json.dumps({"score": score}))
    return score
