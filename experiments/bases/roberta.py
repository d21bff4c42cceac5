"""A small RoBERTa, trained by masked language modelling on the texts of `texts.reading`.

Source: Liu et al., "RoBERTa", 2019: byte-level BPE, new masks at every step. Two changes let a
model of this size learn in minutes to compare sentences:

- Most pairs have hidden words in one half only, so the model can find them in the other half.
- A verdict before a pair is the only hidden word, and counts six times.
"""

# transformers accepts more types than its annotations say.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import AddedToken, RobertaConfig, RobertaForMaskedLM, RobertaTokenizer

from experiments.bases.pretraining import BUILD, WEIGHTS, Amounts, train, write
from experiments.bases.texts.reading import VERDICTS, Text, texts
from pocket.fitting import Losses, device, hold_then_decay

MAX_LENGTH = 48
_VERDICT_WEIGHT = 6.0
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
SHIPPED = Amounts(texts=150_000, steps=24_000, batch=32, learning_rate=5e-4)
"""Amounts that made the shipped weights."""


def build_tokenizer(read: list[Text], vocabulary: int = 800) -> RobertaTokenizer:
    """Return a tokenizer in RoBERTa's layout: four special tokens, bytes, merges, the mask."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        (part for text in read for part in text),
        vocab_size=vocabulary - 1,
        special_tokens=list(_SPECIAL),
        show_progress=False,
    )
    learned = json.loads(bpe.to_str())["model"]
    vocab = learned["vocab"] | {"<mask>": len(learned["vocab"])}
    return RobertaTokenizer(
        vocab=vocab,
        merges=[tuple(merge) for merge in learned["merges"]],
        mask_token=AddedToken("<mask>", lstrip=True, special=True),  # it stands for " word"
        model_max_length=MAX_LENGTH,
    )


def build_roberta(vocabulary: int) -> RobertaForMaskedLM:
    """Return a model 128 wide, with four layers and four heads."""
    config = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.0,  # dropout takes a third of a CPU step, and texts are plentiful
        attention_probs_dropout_prob=0.0,
        max_position_embeddings=MAX_LENGTH + 2,  # RoBERTa counts positions from the padding's id
        type_vocab_size=1,
        initializer_range=0.08,  # 1/sqrt(width); .02, made for 768, learns far slower
        layer_norm_eps=1e-5,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    return RobertaForMaskedLM(config)


class _Reader:
    """Texts as token ids, sorted by length so that batches need little padding."""

    def __init__(self, tokenizer: RobertaTokenizer, read: list[Text], batch: int) -> None:
        self.pad, self.mask, self.batch = tokenizer.pad_token_id, tokenizer.mask_token_id, batch
        self.separator = tokenizer.sep_token_id
        self.special = torch.tensor(tokenizer.all_special_ids)
        self.verdicts = torch.tensor([tokenizer(word).input_ids[1] for word in VERDICTS])
        rows = [tokenizer(*text, verbose=False).input_ids for text in read]
        rows = sorted((ids for ids in rows if len(ids) <= MAX_LENGTH), key=len)
        self.lengths = torch.tensor([len(ids) for ids in rows])
        self.rows = np.full((len(rows), MAX_LENGTH), self.pad, np.int16)
        for row, ids in zip(self.rows, rows, strict=True):
            row[: len(ids)] = ids

    def draw(self) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Return ids with hidden tokens, and labels: -100 for tokens that are not hidden."""
        first = int(torch.randint(len(self.rows) - self.batch + 1, ()))
        length = int(self.lengths[first + self.batch - 1])
        ids = torch.from_numpy(self.rows[first : first + self.batch, :length].astype(np.int64))
        words = ~torch.isin(ids, self.special)
        asked, kind = words & (torch.rand(ids.shape) < self._rates(ids)), torch.rand(ids.shape)
        others = ids[words]
        others = others[torch.randint(len(others), ids.shape)]
        hidden = torch.where(kind < 0.8, self.mask, torch.where(kind < 0.9, others, ids))
        return torch.where(asked, hidden, ids), ids.masked_fill(~asked, -100)

    def _rates(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t"]:
        """Return the probability of hiding each word."""
        chance = torch.rand(3, len(ids), 1)
        separators = (ids == self.separator).cumsum(1)
        one_half = (separators[:, -1:] > 1) & (chance[0] < 0.7)
        this_half = (separators > 0) == (chance[1] < 0.5)
        rates = torch.where(one_half, 0.4 * this_half, 0.2)
        verdict = torch.isin(ids, self.verdicts)
        verdict[:, 2:] = False
        alone = verdict.any(1, keepdim=True) & (chance[2] < 0.7)
        return torch.where(alone, 0.9 * verdict, rates.masked_fill(verdict, 0.0))


def _masked_loss(model: RobertaForMaskedLM, reader: _Reader) -> Losses:
    """Return cross-entropy and accuracies; the head runs on hidden positions only."""
    ids, labels = (x.to(device()) for x in reader.draw())
    hidden = model.roberta(input_ids=ids, attention_mask=(ids != reader.pad).long())
    asked = labels != -100
    logits, wanted = model.lm_head(hidden.last_hidden_state[asked]), labels[asked]
    right = (logits.argmax(-1) == wanted).float()
    verdict = torch.isin(wanted, reader.verdicts.to(wanted.device)).float()
    weights = 1 + (_VERDICT_WEIGHT - 1) * verdict
    each = F.cross_entropy(logits, wanted, reduction="none")
    return {
        "loss": (weights * each).sum() / weights.sum(),
        "accuracy": right.mean(),
        "verdicts": (right * verdict).sum() / verdict.sum().clamp(min=1),
    }


def pretrain_roberta(
    output: Path = WEIGHTS / "roberta", build: Path = BUILD, settings: Amounts = SHIPPED
) -> None:
    """Train the base of the text experiments by masking words. You can stop and restart it.

    Args:
        output: Folder for the model, in transformers' format.
        build: Folder for work files: checkpoints, logs.
        settings: Amounts; the defaults take a quarter of an hour on one core.
    """
    read = texts(settings.texts, seed=0)
    tokenizer = build_tokenizer(read[:20_000])
    reader = _Reader(tokenizer, read, settings.batch)
    torch.manual_seed(0)
    model = build_roberta(len(tokenizer)).to(device())
    train(model, lambda: _masked_loss(model, reader), settings, build, hold_then_decay)
    write(model, tokenizer, output)
