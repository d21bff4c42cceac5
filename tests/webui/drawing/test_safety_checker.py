"""A base with a safety checker keeps it in the studio."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from peft import inject_adapter_in_model
from transformers import CLIPConfig, CLIPImageProcessor

from loldu import LoLDUConfig, save_concept
from loldu.base.open import load_pipeline
from tests.webui.concepts import MakeUse
from tests.webui.drawing.reference import TASK, assert_same, drawn_apart
from webui.drawing.studio import Studio, Watch


@pytest.fixture(scope="module")
def checked_base(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the tiny base, with a checker that flags everything."""
    torch.manual_seed(0)
    vision: dict[str, Any] = {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "image_size": 8,
        "patch_size": 4,
    }
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, projection_dim=4))
    objecting(checker, objects=True)
    size: dict[str, Any] = {"size": {"shortest_edge": 8}, "crop_size": {"height": 8, "width": 8}}
    plain = StableDiffusionPipeline.from_pretrained(
        base_folder, safety_checker=None, requires_safety_checker=False
    )
    parts: dict[str, Any] = {
        **plain.components,
        "safety_checker": checker,
        "feature_extractor": CLIPImageProcessor(**size),
    }
    folder = tmp_path_factory.mktemp("checked")
    StableDiffusionPipeline(**parts).save_pretrained(folder)
    return folder


def objecting(checker: StableDiffusionSafetyChecker, *, objects: bool) -> None:
    """Move the thresholds below or above every possible cosine."""
    checker.concept_embeds_weights.data.fill_(-2.0 if objects else 2.0)
    checker.special_care_embeds_weights.data.fill_(2.0)


def test_only_the_studio_loads_the_safety_checker(checked_base: Path) -> None:
    assert load_pipeline(str(checked_base)).safety_checker is None
    kept = load_pipeline(str(checked_base), safety_checker=True).safety_checker
    assert isinstance(kept, StableDiffusionSafetyChecker)
    assert not kept.training


def test_a_base_without_one_has_none(base_folder: Path) -> None:
    assert load_pipeline(str(base_folder), safety_checker=True).safety_checker is None


def test_flagged_pictures_are_blurred_to_colours(
    checked_base: Path, use: MakeUse, watch: Watch
) -> None:
    studio = Studio(str(checked_base))
    for row in (
        studio.draw_base(TASK, [], watch),
        studio.draw_concepts(TASK, [[use("rabbit")]] * 2, watch),
        studio.draw_concepts(TASK, [[use("rabbit")], [use("house")]], watch),
    ):
        assert [picture.is_hidden for picture in row] == [True, True]
        assert row[0].image.size == (16, 16)
    plain = np.frombuffer(drawn_apart(checked_base)[0], np.uint8).reshape(16, 16, 3)
    hidden = np.asarray(studio.draw_base(TASK, [], watch)[0].image)
    steps = [np.abs(np.diff(image.astype(int), axis=0)).mean() for image in (hidden, plain)]
    assert steps[0] < steps[1] / 2


def test_pictures_that_pass_are_unchanged(
    checked_base: Path, base_folder: Path, tmp_path: Path, watch: Watch
) -> None:
    base = StableDiffusionPipeline.from_pretrained(checked_base)
    objecting(base.safety_checker, objects=False)
    base.save_pretrained(tmp_path)
    row = Studio(str(tmp_path)).draw_base(TASK, [], watch)
    assert not any(picture.is_hidden for picture in row)
    assert_same(row, drawn_apart(base_folder))


def test_a_concept_does_not_change_the_safety_checker(
    checked_base: Path, tmp_path: Path, use: MakeUse, watch: Watch
) -> None:
    pipeline = load_pipeline(str(checked_base), safety_checker=True)
    target = LoLDUConfig(r=2, target_modules=["visual_projection"], init_weights=False)
    inject_adapter_in_model(target, pipeline.safety_checker, "default")
    (tmp_path / "sly").mkdir()
    save_concept(pipeline, tmp_path / "sly" / "concept.safetensors")
    with pytest.raises(ValueError, match="safety_checker"):
        Studio(str(checked_base)).draw_concepts(TASK, [[use("sly", where=tmp_path)]] * 2, watch)
