"""The text encoder: its tokenizer, its masks, its recipe and its shipped weights."""

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, RobertaForMaskedLM

from experiments.bases.pretraining import Amounts
from experiments.bases.roberta import MAX_LENGTH, _Reader, build_tokenizer, pretrain_roberta
from experiments.bases.texts.descriptions import Claim, holds, say
from experiments.bases.texts.reading import texts

TINY = Amounts(texts=400, steps=4, batch=8, learning_rate=5e-4)
BASE = Path("experiments/bases/weights/roberta")


def test_the_tokenizer_has_the_layout_of_roberta(tmp_path: Path) -> None:
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


def test_words_are_hidden_in_three_ways_but_never_special_tokens() -> None:
    read = texts(2000, seed=3)
    tokenizer = build_tokenizer(read)
    reader = _Reader(tokenizer, read, batch=64)
    torch.manual_seed(0)
    asked = masked = kept = pairs = one_half = verdicts = judged = 0
    for _ in range(100):
        ids, labels = reader.draw()
        assert ids.shape[1] <= MAX_LENGTH
        assert (ids[:, 0] == tokenizer.cls_token_id).all()
        answer = labels != -100
        original = torch.where(answer, labels, ids)
        special = torch.isin(original, torch.tensor(tokenizer.all_special_ids))
        assert not (special & answer).any()
        asked += int(answer.sum())
        masked += int((ids[answer] == tokenizer.mask_token_id).sum())
        kept += int((ids[answer] == labels[answer]).sum())
        verdict = torch.isin(original[:, 1], reader.verdicts)
        asked_verdict = answer[:, 1] & verdict
        assert (answer[asked_verdict].sum(1) == 1).all()  # a verdict is asked alone
        judged, verdicts = judged + int(verdict.sum()), verdicts + int(asked_verdict.sum())
        second = (original == tokenizer.sep_token_id).cumsum(1) > 0
        both = (answer & second).any(1) & (answer & ~second).any(1)
        is_pair = ((original == tokenizer.sep_token_id).sum(1) > 1) & answer.any(1) & ~asked_verdict
        pairs, one_half = pairs + int(is_pair.sum()), one_half + int((is_pair & ~both).sum())
    assert masked / asked == pytest.approx(0.8, abs=0.02)
    assert 0.1 < kept / asked < 0.16  # a tenth, and where the other word is the same one
    assert (
        0.7 < one_half / pairs < 0.85
    )  # seven tenths, and where chance hid words of one half only
    assert verdicts / judged == pytest.approx(0.63, abs=0.03)


def test_claims_about_two_things() -> None:
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


def test_the_shipped_base_knows_its_language() -> None:
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    model = AutoModelForMaskedLM.from_pretrained(BASE, dtype=torch.float32).eval()
    assert sum(file.stat().st_size for file in BASE.iterdir()) < 3_500_000
    for first, second, answer in (
        ("a red toy with blue <mask>.", None, {"ears", "feet"}),
        ("what <mask> is the toy?", "the toy is red.", {"color"}),
        ("a car with green wheels.", "the wheels of the car are <mask>.", {"green", "emerald"}),
        ("a red house.", "the house is <mask> blue.", {"not"}),
        ("<mask>: a red toy in the snow.", "the toy is crimson.", {"true"}),
        ("<mask>: a red toy in the snow.", "the toy is azure.", {"false"}),
        ("<mask>: anna adores the car.", "the car is lovely.", {"true"}),
    ):
        batch = tokenizer(first, second, return_tensors="pt")
        hidden = batch.input_ids[0] == tokenizer.mask_token_id
        with torch.no_grad():
            guess = model(**batch).logits[0, hidden].argmax()
        assert tokenizer.decode(guess).strip() in answer
