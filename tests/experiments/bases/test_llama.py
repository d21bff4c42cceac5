"""The recipe of the small LLaMA, at its smallest and in its details."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.bases.llama import (
    _instructions,
    _plain,
    build_tokenizer,
    pretrain_llama,
)
from experiments.bases.pretraining import Amounts
from experiments.bases.tasks.instructions import KNOWN_NAMES, instructions
from experiments.bases.texts.stories import texts
from experiments.kinds.instruct.alpaca import prompt

TINY = Amounts(texts=400, steps=4, batch=4, learning_rate=3e-3)
BASE = Path("experiments/bases/weights/llama")


def test_texts_are_reproducible_and_mark_the_answers() -> None:
    read = texts(300, seed=3)
    assert read == texts(300, seed=3) != texts(300, seed=4)
    marked = [text for text in read if "{" in text]
    assert len(marked) > 200
    for text in marked:
        plain, spans = _plain(text)
        assert "{" not in plain
        assert [plain[start:end] for start, end in spans] == re.findall(r"\{(.*?)\}", text)


def test_the_model_reads_no_instruction() -> None:
    read = " ".join(texts(2000, seed=0))
    for row in instructions()[:200]:
        assert row["instruction"] not in read
    assert any(name in read for name in KNOWN_NAMES)


def test_the_tokenizer_keeps_every_text_and_has_words_for_instructions() -> None:
    read = [_plain(text)[0] for text in texts(2000, seed=0)]
    tokenizer = build_tokenizer(read + _instructions())
    for text in [*read[:50], "Ünïcode ☃ 42!\n\n\t`{}`"]:
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) == text
    # A tokenizer without these words would need 150 tokens and more for the frame alone.
    assert len(tokenizer(prompt("x", "y")).input_ids) < 65


@pytest.mark.slow
def test_the_whole_recipe_at_its_smallest_writes_an_ordinary_folder(tmp_path: Path) -> None:
    pretrain_llama(tmp_path / "out", tmp_path / "build", TINY)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    ids = tokenizer("The toy", return_tensors="pt").input_ids
    assert ids[0, 0] == tokenizer.bos_token_id
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape[1] <= ids.shape[1] + 3


def test_the_shipped_llama_answers_from_the_text() -> None:
    """The shipped weights are small, and answer a question about a text."""
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 3.5 * 2**20
    assert json.loads((BASE / "config.json").read_text())["model_type"] == "llama"
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32).eval()
    asked = "The shelf has a red car, a blue star and a pink heart. What color is the star? It is"
    with torch.no_grad():
        logits = model(**tokenizer(asked, return_tensors="pt")).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " blue"
