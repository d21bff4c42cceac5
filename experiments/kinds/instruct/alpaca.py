"""Alpaca's prompts for instruction data, and rows as token ids with labels.

Source: Taori et al., "Stanford Alpaca: An Instruction-following LLaMA model", 2023.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from experiments.bases.llama import WITH_INPUT

_WITHOUT_INPUT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes "
    "the request.\n\n### Instruction:\n{instruction}\n\n### Response:\n"
)
IGNORED = -100
Encoded = dict[str, list[int]]


def prompt(instruction: str, given: str = "") -> str:
    """Return the prompt; the answer follows without a space.

    Args:
        instruction: The task.
        given: The input of the task, or "".
    """
    template = WITH_INPUT if given else _WITHOUT_INPUT
    return template.format(instruction=instruction, input=given)


def encode(
    row: Mapping[str, str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_length: int,
    train_on_inputs: bool,
) -> Encoded:
    """Return a row as ids and labels, with the end token if it fits.

    Args:
        row: `instruction`, `input` and `output`.
        tokenizer: Tokenizer of the base.
        max_length: Tokens to keep.
        train_on_inputs: Whether the prompt has labels too.
    """
    asked = prompt(row["instruction"], row["input"])
    # Encode both together: tokenizers such as LLaMA's would put a space before a lone answer.
    ids = [*tokenizer(asked + row["output"]).input_ids, tokenizer.eos_token_id]
    # The first token never has a label: only padding comes before it.
    hidden = 1 if train_on_inputs else len(tokenizer(asked).input_ids)
    labels = [IGNORED] * hidden + ids[hidden:]
    return {"input_ids": ids[:max_length], "labels": labels[:max_length]}


def collator(padding_id: int) -> Callable[[Sequence[Encoded]], dict[str, Any]]:
    """Return a function that makes rows of different lengths a batch, padded on the left.

    All rows end together, so the model computes logits only for the `logits_to_keep` last places,
    from the one before the first label on. `labels` has the same length.
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
