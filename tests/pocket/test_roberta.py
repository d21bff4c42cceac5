"""The text encoder: its tokenizer, its masks, its recipe and what was shipped."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, RobertaForMaskedLM

from pocket.descriptions import Claim, holds, say
from pocket.reading import VERDICTS, texts
from pocket.roberta import MAX_LENGTH, TINY, _Reader, build_tokenizer, pretrain_roberta

BASE = Path(__file__).parents[2] / "pocket" / "bases" / "roberta"


def test_the_tokenizer_has_robertas_layout(tmp_path: Path) -> None:
    build_tokenizer(texts(3000, seed=0)).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer("a toy", "an azure car").input_ids
    assert tokenizer.decode(ids) == "<s>a toy</s></s>an azure car</s>"
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert tokenizer.mask_token_id == len(tokenizer) - 1
    assert len(tokenizer("the crimson doll is not to the left of the car.").input_ids) == 14
    masked = tokenizer("a <mask> toy").input_ids
    assert masked == [
        *tokenizer("a toy").input_ids[:2],
        tokenizer.mask_token_id,
        *tokenizer("a toy").input_ids[2:],
    ]
    assert tokenizer.decode(tokenizer("Ünïcode ☃ 42!").input_ids[1:-1]) == "Ünïcode ☃ 42!"


def test_masks_ask_for_words_and_most_often_for_those_that_compare() -> None:
    read = texts(2000, seed=3)
    tokenizer = build_tokenizer(read)
    reader = _Reader(tokenizer, read, batch=64)
    torch.manual_seed(0)
    asked, shown = torch.zeros(len(tokenizer)), torch.zeros(len(tokenizer))
    kept, verdicts = 0, set()
    for _ in range(200):
        masked, labels = reader.draw()
        assert masked.shape[1] <= MAX_LENGTH
        assert (masked[:, 0] == tokenizer.cls_token_id).all()
        verdicts |= set(tokenizer.convert_ids_to_tokens(labels[:, 0][labels[:, 0] >= 0]))
        masked, labels = masked[:, 1:], labels[:, 1:]
        answer = labels != -100
        original = torch.where(answer, labels, masked)
        kept += int((masked[answer] == labels[answer]).sum())
        asked += torch.bincount(original[answer], minlength=len(tokenizer))
        shown += torch.bincount(original.flatten(), minlength=len(tokenizer))
    assert verdicts == set(VERDICTS)
    assert kept / asked.sum() == pytest.approx(0.1, abs=0.02)
    assert asked[tokenizer.all_special_ids].sum() == 0
    rate = asked / shown.clamp(min=1)
    verdict, plain = (tokenizer.convert_tokens_to_ids(word) for word in ("different", "Ġtoy"))
    assert rate[verdict] == pytest.approx(0.8, abs=0.05)
    assert rate[plain] == pytest.approx(0.2, abs=0.03)


def test_what_holds_of_two_things() -> None:
    left = {"kind": "toy", "color": "red", "size": "large"}
    right = {"kind": "car", "color": "red"}
    things = [left, right]
    for claim, truth, said in (
        (Claim("beside", "left"), True, "to the left of"),
        (Claim("beside", "left", negated=True), False, "is not to the left of"),
        (Claim("beside", "left", subject=1, other=0), False, "to the left of"),
        (Claim("than", "larger"), None, "larger than"),
        (Claim("same", "color", negated=True), False, " not "),
        (Claim("color", "blue", negated=True, subject=1), True, "not"),
        (Claim("pattern", "striped"), None, "is"),
    ):
        assert holds(claim, things) is truth
        assert said in say(claim, things, random.Random(0))


def test_the_recipe_at_its_smallest_writes_an_ordinary_folder(tmp_path: Path) -> None:
    pretrain_roberta(tmp_path / "out", tmp_path / "build", TINY)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert isinstance(model, RobertaForMaskedLM)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == len(tokenizer)
    batch = tokenizer("a red toy.", "the toy is red.", return_tensors="pt")
    assert torch.isfinite(model(**batch).logits).all()


def test_the_shipped_base_has_learned_to_compare() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForMaskedLM.from_pretrained(BASE, dtype=torch.float32).eval()
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 3_500_000
    told, untold = (tokenizer.convert_tokens_to_ids(w) for w in ("told", "untold"))
    right = 0
    cases = [
        ("what color is the toy?", "there is an azure toy on the left.", told),
        ("where is the car?", "a small car with red wheels.", untold),
        ("what color is the roof of the house?", "a white cottage with a crimson roof.", told),
        ("what color is the door of the house?", "a big house with an ebony roof.", untold),
    ]
    for question, text, answer in cases:
        batch = tokenizer(question, text, return_tensors="pt")
        with torch.no_grad():
            scores = model(**batch).logits[0, 0]  # at the start token
        right += int((scores[told] > scores[untold]) == (answer == told))
    assert right == len(cases)
