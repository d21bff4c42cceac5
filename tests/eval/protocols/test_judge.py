"""The judge: what it is asked, which answers count, and a tiny random model that answers."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from eval.__main__ import run
from eval.encoders.cache import FeatureCache
from eval.protocols import score
from eval.protocols.judge import (
    CONCEPT,
    PROMPT,
    Judgement,
    ModelJudge,
    concept_question,
    judge_pictures,
    parse_score,
    prompt_question,
)
from loldu.errors import LoLDUError
from tests.eval.noise import save_noise


@pytest.mark.parametrize(
    ("answer", "level"),
    [
        ("The ears differ.\nScore: 3", 3),
        ("score : 0.\n", 0),
        ("**Score: 4**", 4),
        ("Score: 5", None),
        ("Score: 3/4", None),
        ("Score: 2.5", None),
        ("I would say Score: 3", None),
        ("Score: 3\nScore: 4", None),
        ("A score: high one.\nScore: 3", None),
        ("3", None),
        ("", None),
    ],
)
def test_only_one_line_with_a_level_is_an_answer(answer: str, level: int | None) -> None:
    assert parse_score(answer) == level


def test_repeats_ask_the_same_in_another_way() -> None:
    first, second = concept_question(0), concept_question(1)
    assert "The first picture is a photograph" in first
    assert "The second picture is a photograph" in second
    assert sorted(first.splitlines()[1:]) == sorted(second.splitlines()[1:])
    assert first != second
    assert '"a dog on grass"' in prompt_question("a dog on grass", 0)
    assert prompt_question("x", 0).index("0: ") < prompt_question("x", 0).index("4: ")
    assert prompt_question("x", 1).index("0: ") > prompt_question("x", 1).index("4: ")


def test_means_and_agreement_count_valid_answers_alone() -> None:
    nan = float("nan")
    judged = Judgement(np.array([[4, 4, 2], [nan, 1, 1], [0, 3, nan]]))
    assert judged.scores is not None
    np.testing.assert_allclose(judged.scores, [10 / 12, 1 / 4, 3 / 8])
    # Valid pairs: 4-4, 4-2, 4-2, 1-1 and 0-3; two are equal.
    assert judged.agreement == pytest.approx(2 / 5)
    assert judged.unanswered == 2
    silent = Judgement(np.array([[4.0], [nan]]))
    assert silent.scores is None
    assert silent.agreement is None


class Fake:
    """Judge by the brightness of the generated picture, and count the questions."""

    identity = "fake (0)"

    def __init__(self) -> None:
        self.asked: list[tuple[list[float], str]] = []

    def answer(self, images: Sequence[Image.Image], text: str) -> str:
        bright = [float(np.asarray(image).mean()) for image in images]
        self.asked.append((bright, text))
        made = bright[0] if len(bright) == 1 or "first picture was generated" in text else bright[1]
        return f"It is bright.\nScore: {round(made / 255 * 4)}"


def gray(folder: Path, values: dict[str, int]) -> list[Path]:
    folder.mkdir(parents=True)
    for name, value in values.items():
        Image.new("RGB", (8, 8), (value,) * 3).save(folder / f"{name}.png")
    return [folder / f"{name}.png" for name in values]


def test_every_picture_is_judged_with_its_prompt_and_real_pictures_in_turn(tmp_path: Path) -> None:
    drawn = gray(tmp_path / "drawn", {"0": 0, "1": 128, "2": 255})
    real = gray(tmp_path / "real", {"0": 10, "1": 20})
    pictures = [(path, f"prompt {n}") for n, path in enumerate(drawn)]
    fake, memory = Fake(), FeatureCache(tmp_path / "cache.sqlite")
    levels = judge_pictures(fake, memory, pictures, real, 2)
    assert levels[CONCEPT].levels.tolist() == [[0, 0], [2, 2], [4, 4]]
    assert levels[PROMPT].scores is not None
    assert levels[PROMPT].scores.tolist() == [0, 0.5, 1]
    assert levels[CONCEPT].agreement == 1
    pairs = [bright for bright, _ in fake.asked if len(bright) == 2]
    assert pairs == [[10, 0], [0, 20], [20, 128], [128, 10], [10, 255], [255, 20]]
    texts = [text for bright, text in fake.asked if len(bright) == 1]
    assert ["prompt 1" in text for text in texts] == [False, False, True, True, False, False]
    count = len(fake.asked)
    again = judge_pictures(fake, memory, pictures, real, 2)
    assert len(fake.asked) == count  # every answer is stored
    assert again[CONCEPT].levels.tolist() == levels[CONCEPT].levels.tolist()
    unknown = [(path, None) for path in drawn]
    assert set(judge_pictures(fake, None, unknown, real, 1)) == {CONCEPT}


def test_results_have_the_judge_and_a_picture_without_an_answer_leaves_its_score_out(
    scoring: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_noise(tmp_path / "drawn", ["0.png", "1.png"])
    save_noise(tmp_path / "real", ["0.png"], 1)
    out = tmp_path / "out.json"
    folders = ["--generated", str(tmp_path / "drawn"), "--real", str(tmp_path / "real")]
    flags = ["images", *folders, *scoring, "--json", str(out), "--overwrite", "--judge", "any"]
    flags += ["--bootstrap_samples", "5", "--prompt", "a sks toy", "--token", "sks"]
    fake = Fake()
    monkeypatch.setattr(score, "ModelJudge", lambda name, device: fake)
    assert run([*flags, "--judge_repeats", "3"]) == 0
    content = json.loads(out.read_text())
    assert content["judge"] == "fake (0)"
    (subject,) = content["subjects"].values()
    assert subject["judge"][PROMPT] == {"agreement": 1.0, "unanswered": 0}
    assert content["scores"][CONCEPT]["mean"] == pytest.approx(0.5)  # noise is gray
    assert all('"a toy"' in text for bright, text in fake.asked if len(bright) == 1)
    monkeypatch.setattr(Fake, "answer", lambda *given: "I cannot say.")
    assert run(flags) == 0
    content = json.loads(out.read_text())
    assert CONCEPT not in content["scores"]
    (subject,) = content["subjects"].values()
    assert subject["judge"][CONCEPT] == {"agreement": None, "unanswered": 4}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory, tokenizer: CLIPTokenizer) -> Path:
    """Return a tiny random LLaVA that spells its questions letter by letter."""
    folder = tmp_path_factory.mktemp("llava")
    words = CLIPTokenizer.from_pretrained(tokenizer.name_or_path, model_max_length=4096)
    words.add_special_tokens({"additional_special_tokens": ["<image>"]})
    torch.manual_seed(0)
    tower: dict[str, Any] = {
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**tower, image_size=16, patch_size=8),
        text_config=LlamaConfig(
            **tower, vocab_size=len(words), max_position_embeddings=4096, num_key_value_heads=2
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    template = (
        "{% for message in messages %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}"
    )
    LlavaProcessor(
        image_processor=CLIPImageProcessor(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
        ),
        tokenizer=words,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    ).save_pretrained(folder)
    return folder


def test_a_model_of_transformers_answers_the_same_every_time(llava: Path, tmp_path: Path) -> None:
    judge = ModelJudge(str(llava), "cpu")
    images = [Image.new("RGB", (20, 20), color) for color in ("red", "blue")]
    first = judge.answer(images, concept_question(0), max_new_tokens=6)
    assert first == judge.answer(images, concept_question(0), max_new_tokens=6)
    assert concept_question(0)[:20].lower() not in first.lower()
    assert judge.identity.startswith(str(llava))
    with pytest.raises(LoLDUError, match=r"--judge .* is no vision-language model"):
        ModelJudge(str(tmp_path), "cpu")
