import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from loldu.base.open import weights_digest
from loldu.errors import LoLDUError
from loldu.pictures.folder import CaptionedImage
from trainer.options.config import Config, PriorConfig
from trainer.training import prior
from trainer.training.instances import own_class_images
from trainer.training.prior import class_images, own_pictures


def draw(
    pipeline: StableDiffusionPipeline, options: PriorConfig, folder: Path, seed: int = 3
) -> list[CaptionedImage]:
    return class_images(
        pipeline,
        options,
        folder,
        base=weights_digest(pipeline),
        resolution=16,
        seed=seed,
        num_inference_steps=1,
        guidance_scale=1.0,
    )


def test_class_pictures_are_drawn_once_over_all_prompts_and_recorded(
    pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = PriorConfig(True, ("a toy", "a car"), num_class_images=3)
    images = draw(pipeline, options, tmp_path)
    assert [image.caption for image in images] == ["a toy", "a car", "a toy"]
    folder = images[0].path.parent
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    assert rows == [
        {"file_name": "00000.png", "text": "a toy", "seed": 3},
        {"file_name": "00001.png", "text": "a car", "seed": 4},
        {"file_name": "00002.png", "text": "a toy", "seed": 5},
    ]
    monkeypatch.setattr(prior, "sample_images", pytest.fail)  # a second run draws nothing
    assert draw(pipeline, options, tmp_path) == images


def test_an_interrupted_run_draws_only_the_rest(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    options = PriorConfig(True, ("a toy",), num_class_images=3)
    images = draw(pipeline, options, tmp_path)
    whole = [image.path.read_bytes() for image in images]
    kept = images[0].path.stat().st_mtime_ns
    images[1].path.unlink()
    draw(pipeline, options, tmp_path)
    assert [image.path.read_bytes() for image in images] == whole
    assert images[0].path.stat().st_mtime_ns == kept


def test_class_pictures_with_other_settings_are_not_reused(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    options = PriorConfig(True, ("a toy",), num_class_images=1)
    folders = {
        draw(pipeline, options, tmp_path)[0].path.parent,
        draw(pipeline, options, tmp_path, seed=4)[0].path.parent,
        draw(pipeline, PriorConfig(True, ("a car",), num_class_images=1), tmp_path)[0].path.parent,
    }
    pipeline.unet.conv_in.weight.data.add_(1)
    folders.add(draw(pipeline, options, tmp_path)[0].path.parent)
    assert len(folders) == 4


def test_own_class_pictures_are_used_unchanged(
    pipeline: StableDiffusionPipeline,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "trainer")
    own = tmp_path / "own"
    own.mkdir()
    Image.new("RGB", (16, 16)).save(own / "a.png")
    Image.new("RGB", (16, 16)).save(own / "b.png")
    (own / "b.txt").write_text("a blue car")
    monkeypatch.setattr(prior, "sample_images", pytest.fail)
    images = draw(pipeline, PriorConfig(True, ("a toy",), own), tmp_path)
    assert [(image.path.name, image.caption) for image in images] == [
        ("a.png", "a toy"),
        ("b.png", "a blue car"),
    ]
    assert f"{own} has 2 pictures, fewer than --num_class_images 100: each is used" in caplog.text
    with pytest.raises(LoLDUError, match=r"a\.png has no caption: give --class_prompt"):
        draw(pipeline, PriorConfig(True, (), own), tmp_path)


def test_own_class_pictures_without_a_caption_take_the_class_prompts_in_turn(
    tmp_path: Path,
) -> None:
    for name in ("a.png", "b.png", "c.png", "d.png"):
        Image.new("RGB", (16, 16)).save(tmp_path / name)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "a blue car"}\n')
    images = own_class_images(PriorConfig(True, ("a toy", "a car"), tmp_path))
    assert [image.caption for image in images] == ["a toy", "a car", "a blue car", "a car"]
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / ".hidden.png").write_bytes(b"")
    assert own_class_images(PriorConfig(True, ("a toy",), empty)) == []


def test_an_empty_class_folder_without_a_prompt_gives_one_clear_error(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    with pytest.raises(LoLDUError, match="has no pictures; put some there, or give"):
        draw(pipeline, PriorConfig(True, (), tmp_path / "none"), tmp_path)


def test_the_concept_s_own_pictures_are_class_pictures_without_its_words(
    tmp_path: Path, make_config: Callable[..., Config]
) -> None:
    path, mask = tmp_path / "a.png", tmp_path / "a-masklabel.png"
    pictures = [
        CaptionedImage(path, "a photo of sks toy in snow", repeats=2, mask=mask),
        CaptionedImage(path, "snow"),
    ]
    config = make_config("--token", "sks")
    assert own_pictures(pictures, config) == [
        CaptionedImage(path, "a photo of toy in snow", repeats=2)
    ]
    with pytest.raises(LoLDUError, match="no caption has it"):
        own_pictures(pictures[1:], config)
    with pytest.raises(LoLDUError, match="give it with --token"):
        own_pictures(pictures, replace(config, instance=replace(config.instance, token=None)))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prior_target", "base"], "does nothing without --with_prior_preservation"),
        (["--with_prior_preservation"], "add --prior_target base"),
        (
            ["--with_prior_preservation", "--prior_target", "base", "--class_data_dir", "x"],
            "uses no --class_data_dir",
        ),
    ],
)
def test_the_concept_s_own_pictures_need_the_base_s_answer(
    more: list[str], message: str, make_config: Callable[..., Config]
) -> None:
    with pytest.raises(LoLDUError, match=message):
        make_config("--class_pictures", "concept", *more)
