"""The kind `vision`: trained parameters, training, and exact resume."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from torchvision.transforms import v2
from transformers import ViTConfig, ViTForImageClassification

from experiments import training
from experiments.config import Run
from experiments.kinds import vision
from experiments.kinds.classify import HEAD
from experiments.methods import adapt, count_parameters
from experiments.outcome import Outcome
from experiments.recipe import Recipe
from loldu.errors import LoLDUError

RECIPE = Recipe(
    learning_rate=1e-2,
    batch_size=8,
    epochs=4,
    report="best",
    image_size_px=64,
    crop_scale_min=0.6,
)


def pictures(split: str, rows: int) -> Dataset:
    """Return pictures of horizontal or vertical stripes, with noise."""
    rng = np.random.default_rng(len(split))
    features = Features({"image": ImageColumn(), "label": ClassLabel(names=["across", "upright"])})
    labels = [i % 2 for i in range(rows)]
    drawn = []
    for label in labels:
        phase = rng.integers(16)
        stripes = np.where((np.arange(64) + phase) % 16 < 8, 200, 60)[:, None] * np.ones(64)
        pixels = (stripes.T if label else stripes) + rng.normal(0, 20, (64, 64))
        drawn.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return Dataset.from_dict({"image": drawn, "label": labels}, features)


@pytest.fixture(autouse=True)
def stripes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = DatasetDict({"train": pictures("train", 32), "test": pictures("test!", 40)})
    monkeypatch.setattr(vision, "load_data", lambda name: data)
    vision._decode_all.cache_clear()


def run(method: str, options: dict[str, Any], recipe: Recipe = RECIPE) -> Run:
    base = "./experiments/bases/weights/vit"
    return Run("vision", "pocket", "a-row", "stripes", 3, base, method, options, recipe)


def performed(method: str, options: dict[str, Any], work: Path, **recipe: Any) -> Outcome:  # noqa: ANN401
    given = Recipe(**{**RECIPE.given(), **recipe})
    return vision.run(run(method, options, given), work)


def test_a_run_learns_and_records_its_facts(tmp_path: Path) -> None:
    outcome = performed("loldu", {"r": 16}, tmp_path)
    assert outcome.score > 80
    assert [point["epoch"] for point in outcome.history] == [1, 2, 3, 4]
    assert outcome.score == max(point["accuracy"] for point in outcome.history)
    assert outcome.parameters == 4 * 2 * (16 + 1)
    assert outcome.head_parameters == 2 * 128 + 2
    assert outcome.facts["rows"] == {"train": 32, "test": 40}
    assert outcome.facts["classes"] == 2
    assert outcome.facts["base_parameters"] == 894_080


def test_a_killed_run_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = performed("loldu", {"r": 16}, tmp_path / "whole")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    seen = 0
    original = vision.Pictures.__getitem__

    def until_killed(self: vision.Pictures, index: int) -> dict[str, Any]:
        nonlocal seen
        seen += 1
        if seen == 2 * (32 + 40) + 20:  # in the third epoch: each trains on 32 and tests 40
            raise KeyboardInterrupt
        return original(self, index)

    monkeypatch.setattr(vision.Pictures, "__getitem__", until_killed)
    with pytest.raises(KeyboardInterrupt):
        performed("loldu", {"r": 16}, tmp_path / "killed")
    monkeypatch.setattr(vision.Pictures, "__getitem__", original)
    assert list((tmp_path / "killed").glob("checkpoint-*"))
    found = performed("loldu", {"r": 16}, tmp_path / "killed")
    assert found.history == expected.history
    assert found.score == expected.score


def losses(init: str, work: Path, **options: Any) -> list[float]:  # noqa: ANN401
    given = {"r": 128, "diagonal_init": init, **options}
    outcome = performed("loldu", given, work / init, epochs=2)
    return [point["loss"] for point in outcome.history]


def test_preserving_starts_train_alike_when_the_scale_is_fixed(tmp_path: Path) -> None:
    """With a fixed scale delta = sigma_0 dz for every start; only a trained scale depends on z."""
    fixed = [
        losses(init, tmp_path, train_scale=False)
        for init in ("ldu", "uniform", "normal", "constant")
    ]
    for others in fixed[1:]:
        assert others == pytest.approx(fixed[0], rel=1e-4)
    trained = [losses(init, tmp_path / "trained") for init in ("ldu", "constant")]
    assert trained[0] != pytest.approx(trained[1], rel=1e-4)


def test_perturbing_starts_begin_elsewhere(tmp_path: Path) -> None:
    """Almost untrained, preserving starts equal the base and perturbing ones do not."""
    still = {"learning_rate": 1e-9, "epochs": 1}
    probe = performed("lp", {}, tmp_path / "probe", **still).history[-1]["loss"]
    for residual, same in (("preserve", True), ("perturb", False)):
        options = {"r": 128, "diagonal_init": "zeros", "residual": residual}
        loss = performed("loldu", options, tmp_path / residual, **still).history[-1]["loss"]
        assert (loss == pytest.approx(probe, rel=1e-4)) is same


def test_labels_must_be_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = pictures("train", 8).cast_column("label", Value("int64"))
    monkeypatch.setattr(vision, "load_data", lambda name: DatasetDict(train=plain, test=plain))
    with pytest.raises(LoLDUError, match="column label of stripes does not hold classes"):
        performed("lp", {}, tmp_path)


def test_a_missing_base_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    nowhere = Run("vision", "full", "a", "stripes", 0, "./no/such/base", "lp", {}, RECIPE)
    with pytest.raises(LoLDUError, match="neither a local folder nor available") as error:
        vision.run(nowhere, tmp_path)
    assert "\n" not in str(error.value)


def test_pictures_for_training_are_cropped_and_those_for_the_test_are_not() -> None:
    picture = torch.arange(3 * 48 * 96, dtype=torch.int64).remainder(251).to(torch.uint8)
    picture = picture.view(3, 48, 96)
    torch.manual_seed(0)
    shown = vision.transform(RECIPE, training=True)
    assert not torch.equal(shown(picture), shown(picture))
    tested = vision.transform(RECIPE, training=False)(picture)
    assert tested.dtype == torch.uint8
    assert torch.equal(tested, v2.functional.resize(picture, [64, 64], antialias=True))
    whole = Recipe(image_size_px=64, crop_scale_min=1.0, flip=False)
    assert torch.equal(vision.transform(whole, training=True)(picture), tested)


def test_large_datasets_are_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(vision._decode_all("stripes", "train") or []) == 32
    vision._decode_all.cache_clear()
    monkeypatch.setattr(vision, "KEPT_PICTURES_BYTES", 3 * 64 * 64 * 31)
    assert vision._decode_all("stripes", "train") is None
    rows = vision.load_data("stripes")["train"]
    made = vision.Pictures(rows, None, vision.transform(RECIPE, training=False))
    assert made[1]["picture"].shape == (3, 64, 64)
    assert made[1]["label"] == 1


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("loldu", {"r": 64}, 24 * 64 + 24),
        ("loldu", {"r": 64, "train_scale": False}, 1_536),
        ("loldu", {"r": 768}, 18_456),
        ("lora", {"r": 16}, 589_824),
        ("fourierft", {"n_frequency": 3000}, 72_000),
        ("fourierft", {"n_frequency": 10_000}, 240_000),
        ("lp", {}, 0),
        ("ft", {}, 85_798_656),
    ],
)
def test_parameters_of_vit_b_16(method: str, options: dict[str, Any], expected: int) -> None:
    """ViT-B/16: 12 layers, query and value, 768 wide."""
    with torch.device("meta"):
        base = ViTForImageClassification(ViTConfig(num_labels=100))
        model = adapt(base, method, options, head=HEAD, seed=0)
    assert count_parameters(model, HEAD) == (expected, 100 * 768 + 100)
