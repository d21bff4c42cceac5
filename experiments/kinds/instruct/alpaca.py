"""Rows of instruction data as Alpaca puts them to a model, and as token ids with labels.

Source: Taori et al., "Stanford Alpaca: An Instruction-following LLaMA model", 2023.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
IGNORED = -100
Encoded = dict[str, list[int]]


def prompt(instruction: str, given: str = "") -> str:
    """What a model is asked; its answer follows at once.

    Args:
        instruction: What to do.
        given: What to do it with, if anything.
    """
    template = _WITH_INPUT if given else _WITHOUT_INPUT
    return template.format(instruction=instruction, input=given)


def encode(
    row: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    train_on_inputs: bool,
) -> Encoded:
    """A row as ids and labels, with the mark of the end where that still fits.

    Args:
        row: `instruction`, `input` and `output`.
        tokenizer: The base's.
        max_length: Tokens that are kept.
        train_on_inputs: Whether the prompt has labels too.
    """
    asked = prompt(row["instruction"], row["input"])
    # In one piece: by itself, an answer would begin with a space to tokenizers such as LLaMA's.
    ids = [*tokenizer(asked + row["output"]).input_ids, tokenizer.eos_token_id]
    # The first has no label in any case: nothing comes before it but, in a batch, padding.
    hidden = 1 if train_on_inputs else len(tokenizer(asked).input_ids)
    labels = [IGNORED] * hidden + ids[hidden:]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def collator(padding_id: int) -> Callable[[Sequence[Encoded]], dict[str, Any]]:
    """Rows of different lengths -> a batch, padded on the left.

    All rows end together there, so that a model need give logits for the end alone: for the
    `logits_to_keep` last places, from the one before the first label on. `labels` has as many.
    """

    def collate(rows: Sequence[Encoded]) -> dict[str, Any]:
        length = max(len(row["input_ids"]) for row in rows)

        def padded(values: Sequence[list[int]], filler: int) -> Tensor:
            return torch.tensor([[filler] * (length - len(own)) + own for own in values])

        labels = padded([row["labels"] for row in rows], IGNORED)
        counted = (labels != IGNORED).any(dim=0)
        first = int(counted.int().argmax()) if counted.any() else length
        kept = length - first + 1
        return {
            "input_ids": padded([row["input_ids"] for row in rows], padding_id),
            "attention_mask": padded([[1] * len(row["input_ids"]) for row in rows], 0),
            "labels": labels[:, -kept:],
            "logits_to_keep": kept,
        }

    return collate
