"""A small LLaMA, trained as a language model on the texts of `experiments.bases.texts.stories`.

Words that follow from the text count more than random parts of a scene. Without this weight, so few
steps teach a model of this size to write, but hardly to read.

Source: Touvron et al., "Llama 2: Open Foundation and Fine-Tuned Chat Models", 2023.
"""

import re
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.bases.pretraining import BUILD, WEIGHTS, Amounts, train, write
from experiments.bases.texts.stories import KINDS, MARKS, problems, texts
from pocket.fitting import Losses, cosine, device

MAX_LENGTH = 128
_ANSWER_WEIGHT = 8.0
WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further "
    "context. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:\n"
)
"""Alpaca's prompt for an instruction with an input."""
_BOS, _EOS, _PAD = "<s>", "</s>", "<pad>"
_SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
SHIPPED = Amounts(texts=300_000, steps=6_000, batch=16, learning_rate=3e-3)
"""Amounts that made the shipped weights."""


def build_tokenizer(read: list[str], vocabulary: int = 960) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE, like that of LLaMA 3; a text begins with `<s>`."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[_BOS, _EOS, _PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(read, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{_BOS} $A", special_tokens=[(_BOS, bpe.token_to_id(_BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token=_BOS,
        eos_token=_EOS,
        pad_token=_PAD,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )


def build_llama(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a model 128 wide, with four layers and four heads."""
    special: Any = {name: getattr(tokenizer, name) for name in _SPECIAL_IDS}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        rms_norm_eps=1e-5,
        **special,
    )
    return LlamaForCausalLM(config)


def _instructions() -> list[str]:
    """Return wordings of instructions, for the tokenizer only: the model reads none of them."""
    rng = Random(1)
    tasks = [problems(rng, kind=kind)[0].task for kind in KINDS for _ in range(100)]
    return [WITH_INPUT.format(instruction=task, input="") for task in tasks]


class _Reader:
    """All texts as one stream of token ids, each between begin and end tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast, read: list[str]) -> None:
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        stream, answers = [], []
        for text in read:
            plain, spans = _plain(text)
            encoded = tokenizer(plain, add_special_tokens=False, return_offsets_mapping=True)
            stream += [bos, *encoded.input_ids, eos]
            of_answers = (
                any(first < end and start < last for start, end in spans)
                for first, last in encoded.offset_mapping
            )
            answers += [False, *of_answers, False]
        self.stream, self.answers = np.array(stream, np.int16), np.array(answers)

    def draw(self, batch: int) -> tuple[Int[Tensor, "b t"], Bool[Tensor, "b t"]]:
        """Return random sequences of the stream, and which of their tokens belong to answers."""
        firsts = torch.randint(len(self.stream) - MAX_LENGTH, (batch, 1))
        places = (firsts + torch.arange(MAX_LENGTH)).numpy()
        ids = torch.from_numpy(self.stream[places].astype(np.int64))
        return ids, torch.from_numpy(self.answers[places])


def _plain(text: str) -> tuple[str, list[tuple[int, int]]]:
    """Return a text without its marks, and the spans between them."""
    parts = re.split("[" + re.escape(MARKS) + "]", text)
    ends = np.cumsum([len(part) for part in parts]).tolist()
    return "".join(parts), list(zip(ends[0:-1:2], ends[1::2], strict=True))


def _loss(model: LlamaForCausalLM, reader: _Reader, batch: int) -> Losses:
    ids, answers = (x.to(device()) for x in reader.draw(batch))
    logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
    wanted, asked = ids[:, 1:].flatten(), answers[:, 1:].flatten()
    each = F.cross_entropy(logits, wanted, reduction="none")
    weights = 1 + (_ANSWER_WEIGHT - 1) * asked
    right = (logits.argmax(-1) == wanted)[asked].float()
    return {
        "loss": (weights * each).sum() / weights.sum(),
        "plain": each.detach().mean(),
        "answers": right.mean(),
    }


def pretrain_llama(
    output: Path = WEIGHTS / "llama", build: Path = BUILD, settings: Amounts = SHIPPED
) -> None:
    """Train the small LLaMA on texts of the world. You can stop and restart it.

    Args:
        output: Folder for the model, in transformers' format.
        build: Folder for work files: checkpoints, logs.
        settings: Amounts; the defaults take about 40 minutes on one core.
    """
    read = texts(settings.texts, seed=0)
    tokenizer = build_tokenizer([_plain(text)[0] for text in read[:20_000]] + _instructions())
    reader = _Reader(tokenizer, read)
    torch.manual_seed(0)
    model = build_llama(tokenizer)
    model.to(device())  # pyright: ignore[reportArgumentType]
    train(model, lambda: _loss(model, reader, settings.batch), settings, build, cosine)
    write(model, tokenizer, output)
