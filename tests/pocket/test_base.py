"""The shipped weights: size, format, and the quality that their record states."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from eval.encoders.load import load_clip, load_dino
from experiments.kinds.concepts.judge import BACKGROUNDS, Judge
from loldu.base.open import load_pipeline, weights_digest
from pocket.captions import full_caption
from pocket.classifier import load_classifier, overall_agreement
from pocket.corpus import random_scenes
from pocket.judge import draw, to_pixels
from pocket.world import CONCEPTS

POCKET = Path(__file__).parents[2] / "pocket"
CONCEPT_FOLDERS = Path(__file__).parents[2] / "datasets" / "concepts"


def test_the_base_is_an_ordinary_fp16_folder_of_at_most_25_mb() -> None:
    files = [path for path in (POCKET / "base").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6
    index = json.loads((POCKET / "base" / "model_index.json").read_text())
    classes = {part: index[part][1] for part in ("unet", "vae", "text_encoder", "tokenizer")}
    assert classes == {
        "unet": "UNet2DConditionModel",
        "vae": "AutoencoderKL",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
    }
    for file in files:
        assert file.suffix in (".safetensors", ".json"), file


def test_the_record_passes_the_gate() -> None:
    ratio = json.loads((POCKET / "base.json").read_text())["judgement"]["ratio"]
    assert ratio.pop("overall") >= 0.85
    assert min(ratio.values()) >= 0.7, ratio


def test_the_base_draws_its_prompts() -> None:
    pipeline = load_pipeline(str(POCKET / "base"))
    record = json.loads((POCKET / "base.json").read_text())
    assert record["weights"] == weights_digest(pipeline)
    scenes = random_scenes(seed=3_000_000, count=24)
    pictures = draw(pipeline, [full_caption(scene) for scene in scenes])
    classifier = load_classifier(POCKET / "encoders" / "attributes.safetensors")
    assert overall_agreement(classifier.read(to_pixels(pictures)), scenes) > 0.75


def test_a_rare_token_draws_an_unknown_individual() -> None:
    pipeline = load_pipeline(str(POCKET / "base"))
    kinds = [kind for kind in ("toy", "car", "house") for _ in range(4)]
    plain = to_pixels(draw(pipeline, [f"a photo of a {kind} on grass" for kind in kinds]))
    rare = to_pixels(draw(pipeline, [f"a photo of a sks {kind} on grass" for kind in kinds]))
    assert (plain - rare).abs().mean() > 0.05
    classifier = load_classifier(POCKET / "encoders" / "attributes.safetensors")
    assert overall_agreement(classifier.read(rare), [{"kind": kind} for kind in kinds]) > 0.9
    names = json.loads((POCKET / "base.json").read_text())["individuals"]
    assert names["named"] > names["unnamed"] + 0.2


@pytest.mark.parametrize(("encoder", "margin"), [("clip", 0.1), ("dino", 0.04)])
@pytest.mark.parametrize("name", CONCEPTS)
def test_encoders_distinguish_a_concept_from_similar_things(
    name: str, encoder: str, margin: float
) -> None:
    folder = CONCEPT_FOLDERS / name
    true = [Image.open(path).convert("RGB") for path in sorted((folder / "held_out").glob("*.png"))]
    taught = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]
    others = [
        Image.open(path).convert("RGB")
        for other in CONCEPTS
        if other != name
        for path in sorted((CONCEPT_FOLDERS / other).glob("*.png"))
    ]
    load = load_clip if encoder == "clip" else load_dino
    extractor = load(str(POCKET / "encoders" / encoder))
    goal = extractor.encode_images(true)
    near = (extractor.encode_images(taught) @ goal.T).mean()
    far = (extractor.encode_images(others) @ goal.T).mean()
    assert near > far + margin


def test_every_concept_ships_pictures_captions_and_held_out_pictures() -> None:
    for name, concept in CONCEPTS.items():
        folder = CONCEPT_FOLDERS / name
        taught = sorted(folder.glob("*.png"))
        assert 4 <= len(taught) <= 5
        assert len(list((folder / "held_out").glob("*.png"))) >= 4
        for path in taught:
            caption = path.with_suffix(".txt").read_text()
            assert caption.startswith(f"a photo of a sks {concept['kind']} ")


def test_the_judge_scores_true_pictures_high() -> None:
    judge = Judge("striped_cat")
    read = judge.classifier.read(to_pixels(judge.pictures))
    parts = {key: value for key, value in judge.concept.items() if key != "kind"}
    assert overall_agreement(read, [parts] * len(read)) > 0.8
    assert len(judge.prompts("sks")) == 6 * len(BACKGROUNDS)
    assert all(
        " sks cat" not in prompt and " sks toy " in prompt for prompt in judge.prompts("sks")
    )
    assert judge.likeness(judge.pictures)["dino"] <= 1 + torch.finfo(torch.float32).eps
