"""A small RoBERTa, trained by masked language modelling on the texts of `pocket.reading`.

Source: Liu et al., "RoBERTa", 2019: byte-level BPE, masks drawn anew at every step. Words that compare are masked more often, as salient spans are in Guu et al., "REALM", 2020;
and some are asked for at the start token, as the next sentence is in BERT: of a world so small the
start token learns nothing else to tell a head.
"""

# transformers types its tokenizers' and models' calls more narrowly than what they take.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from tokenizers import ByteLevelBPETokenizer
from torch import Tensor
from transformers import AddedToken, RobertaConfig, RobertaForMaskedLM, RobertaTokenizer

from pocket.fitting import Losses, device, fit
from pocket.reading import LINKS, VERDICTS, Text, texts

MAX_LENGTH = 48
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RobertaRecipe:
    """How much of everything.

    Attributes:
        texts: Texts to read, each several times.
        steps: Optimizer steps.
        batch: Texts a step.
        learning_rate: Its peak.
    """

    texts: int = 200_000
    steps: int = 10_000
    batch: int = 32
    learning_rate: float = 1.2e-3


TINY = RobertaRecipe(texts=400, steps=4, batch=8)


def build_tokenizer(read: list[Text], vocabulary: int = 800) -> RobertaTokenizer:
    """A tokenizer in RoBERTa's own layout: four special tokens, bytes, merges, the mask."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        (sentence for text in read for sentence in text.sentences),
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
    """128 wide, four layers, four heads."""
    config = RobertaConfig(
        vocab_size=vocabulary,
        hidden_size=128,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=256,
        hidden_dropout_prob=0.0,  # a third of a CPU step's time, for texts that are never scarce
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
    """Texts as token ids, sorted by length so that a batch of neighbours needs little padding."""

    def __init__(self, tokenizer: RobertaTokenizer, read: list[Text], batch: int) -> None:
        self.pad, self.mask, self.batch = tokenizer.pad_token_id, tokenizer.mask_token_id, batch
        verdicts = dict(zip(VERDICTS, _ids_of(tokenizer, VERDICTS), strict=True)) | {"": -100}
        rows = [(_encode(tokenizer, text), verdicts[text.verdict]) for text in read]
        rows = sorted((row for row in rows if len(row[0]) <= MAX_LENGTH), key=lambda r: len(r[0]))
        self.lengths = torch.tensor([len(ids) for ids, _ in rows])
        self.asked = torch.tensor([verdict for _, verdict in rows])
        self.rows = np.full((len(rows), MAX_LENGTH), self.pad, np.int16)
        for row, (ids, _) in zip(self.rows, rows, strict=True):
            row[: len(ids)] = ids
        self.rates = torch.full((len(tokenizer),), 0.2)
        often = _ids_of(tokenizer, (*VERDICTS, *(f" {word}" for word in LINKS)))
        self.rates[often] = 0.8
        self.rates[tokenizer.all_special_ids] = 0.0
        self.compared = torch.tensor(often)
        self.words = (self.rates > 0).nonzero()[:, 0]

    def draw(self) -> tuple[Int[Tensor, "b t"], Int[Tensor, "b t"]]:
        """Ids with masks in them, and the labels: -100 where nothing is asked."""
        first = int(torch.randint(len(self.rows) - self.batch + 1, ()))
        length = int(self.lengths[first + self.batch - 1])
        ids = torch.from_numpy(self.rows[first : first + self.batch, :length].astype(np.int64))
        asked = torch.rand(ids.shape) < self.rates[ids]
        kind = torch.rand(ids.shape)
        masked = ids.masked_fill(asked & (kind < 0.8), self.mask)
        guess = self.words[torch.randint(len(self.words), ids.shape)]
        masked = torch.where(asked & (kind > 0.9), guess, masked)
        labels = ids.masked_fill(~asked, -100)
        labels[:, 0] = self.asked[first : first + self.batch]
        return masked, labels


def _encode(tokenizer: RobertaTokenizer, text: Text) -> list[int]:
    return tokenizer(*text.sentences, verbose=False).input_ids


def _ids_of(tokenizer: RobertaTokenizer, words: Sequence[str]) -> list[int]:
    """The ids of words that are one token each."""
    return [first for _, first, _ in tokenizer(list(words)).input_ids]


def _masked_loss(model: RobertaForMaskedLM, reader: _Reader) -> Losses:
    """Cross-entropy and accuracies; the head runs on the asked positions alone."""
    ids, labels = (x.to(device()) for x in reader.draw())
    hidden = model.roberta(input_ids=ids, attention_mask=(ids != reader.pad).long())
    asked = labels != -100
    logits = model.lm_head(hidden.last_hidden_state[asked])
    wanted = labels[asked]
    right = (logits.argmax(-1) == wanted).float()
    compared = torch.isin(wanted, reader.compared.to(wanted.device))
    return {
        "loss": F.cross_entropy(logits, wanted),
        "accuracy": right.mean(),
        "verdicts": right[compared].sum() / compared.sum().clamp(min=1),
    }


def pretrain_roberta(output: Path, build: Path, recipe: RobertaRecipe) -> None:
    """Trains the encoder and writes `output`, an ordinary transformers folder in half precision.

    Args:
        output: Folder for config, weights and tokenizer.
        build: Folder for checkpoints and the log; a stopped run goes on from there.
        recipe: How much of everything.
    """
    read = texts(recipe.texts, seed=0)
    tokenizer = build_tokenizer(read[:20_000])
    reader = _Reader(tokenizer, read, recipe.batch)
    torch.manual_seed(0)
    model = build_roberta(len(tokenizer)).to(device())

    def losses_at(step: int) -> Losses:
        return _masked_loss(model, reader)

    model.train()
    groups: list[dict[str, object]] = [
        {"params": list(model.parameters()), "lr": recipe.learning_rate}
    ]
    fit("roberta", model, groups, losses_at, build=build, steps=recipe.steps, warmup_steps=300)
    model.half().save_pretrained(output)
    tokenizer.save_pretrained(output)
    _log.info("Wrote %s.", output)
