"""The ViT of the image experiments, an ordinary transformers folder."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ViTForImageClassification, ViTModel

from experiments.bases.vit import LABELS, VitPretraining, pretrain_vit
from pocket.views import random_view

TINY_VIT = VitPretraining(pictures=60, held_out=20, steps=2, batch=4)
SHIPPED = Path("experiments/bases/weights/vit")


def test_the_smallest_recipe_writes_a_vit(tmp_path: Path) -> None:
    pretrain_vit(tmp_path / "vit", tmp_path / "build", TINY_VIT)
    vit = ViTModel.from_pretrained(tmp_path / "vit", add_pooling_layer=False)
    assert vit.dtype == torch.float32
    record = json.loads((tmp_path / "vit" / "pretraining.json").read_text())
    assert set(record["held_out_accuracy"]) == set(LABELS)
    assert record["recipe"]["steps"] == TINY_VIT.steps


def test_the_shipped_vit_loads_as_a_classifier() -> None:
    model = ViTForImageClassification.from_pretrained(SHIPPED, num_labels=5)
    processor = AutoImageProcessor.from_pretrained(SHIPPED)
    picture = Image.new("RGB", (100, 80), (255, 255, 255))
    pixels = processor(picture, return_tensors="pt").pixel_values
    torch.testing.assert_close(pixels, torch.ones(1, 3, 64, 64))
    assert model(pixel_values=pixels).logits.shape == (1, 5)
    assert (SHIPPED / "model.safetensors").stat().st_size < 3.5 * 2**20
    accuracies = json.loads((SHIPPED / "pretraining.json").read_text())["held_out_accuracy"]
    assert min(accuracies.values()) > 0.8


def test_a_whole_view_is_the_picture_or_its_mirror() -> None:
    torch.manual_seed(0)
    pictures = torch.rand(8, 3, 16, 16)
    views = random_view(pictures, 16, 1.0, 1.0)
    mirrored = 0
    for picture, view in zip(pictures, views, strict=True):
        flip = not torch.allclose(view, picture, atol=1e-5)
        mirrored += flip
        torch.testing.assert_close(view, picture.flip(-1) if flip else picture, atol=1e-5, rtol=0)
    assert 0 < mirrored < 8


def test_a_view_has_the_requested_area() -> None:
    """A ramp from 0 to 1 across: a crop of a quarter of the area spans half of it."""
    ramp = ((torch.arange(64) + 0.5) / 64).expand(20, 3, 64, 64)
    views = random_view(ramp, 64, 0.25, 0.25)
    spans = views.amax((1, 2, 3)) - views.amin((1, 2, 3))
    assert spans.tolist() == pytest.approx([0.5 * 63 / 64] * 20, abs=0.01)
