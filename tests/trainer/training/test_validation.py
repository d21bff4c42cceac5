"""Validation pictures: the model of each row, kept pictures, and the sheets."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image

from loldu import load_concept
from loldu.base.draw import sample_images
from loldu.base.open import load_pipeline
from loldu.pictures.grid import GAP_PX
from trainer.__main__ import run
from trainer.methods.method import add_trainables
from trainer.options.config import Config
from trainer.training.validation import Validation, sheet

PROMPTS = ["sks", "a toy on grass"]
ROW_PX = 160 + GAP_PX
FLAGS = ["--validation_prompt", *PROMPTS, "--validation_steps", "3"]
MakeConfig = Callable[..., Config]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "run" / "validation"


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def drawn_by(pipeline: StableDiffusionPipeline) -> list[np.ndarray]:
    images = sample_images(
        pipeline, PROMPTS, [42, 43], num_inference_steps=2, resolution=16, progress=False
    )
    return [np.asarray(image) for image in images]


def test_the_sheet_has_a_row_of_the_base_and_one_of_the_concept(
    flags: list[str], folder: Path, base_folder: Path
) -> None:
    assert run([*flags, *FLAGS]) == 0
    names = sorted(path.name for path in folder.glob("*.png"))
    assert names == ["000000.png", "000003.png", "000004.png", "progress.png"]
    pipeline = load_pipeline(str(base_folder))
    base = drawn_by(pipeline)
    load_concept(pipeline, folder.parent / "concept.safetensors")
    adapted = drawn_by(pipeline)
    assert not np.array_equal(base, adapted)
    last = pixels(folder / "000004.png")
    for column in range(2):
        for row, (name, images) in enumerate({"base": base, "000004": adapted}.items()):
            single = pixels(folder / "pictures" / f"{name}-{column:02d}.png")
            np.testing.assert_array_equal(single, images[column])
            large = single.repeat(10, axis=0).repeat(10, axis=1)
            # from the right and from below: the text's width and height are Pillow's affair
            right, bottom = GAP_PX + (1 - column) * ROW_PX, GAP_PX + (1 - row) * ROW_PX
            place = last[-bottom - 160 : -bottom, -right - 160 : -right]
            np.testing.assert_array_equal(place, large)
    assert pixels(folder / "000000.png").shape[0] == last.shape[0] - ROW_PX
    assert pixels(folder / "progress.png").shape[0] == last.shape[0] + ROW_PX
    with Image.open(folder / "pictures" / "000004-01.png") as image:
        parameters = "a toy on grass\nSteps: 2, CFG scale: 7.5, Seed: 43, Size: 16x16"
        assert image.info["parameters"] == parameters


def test_the_base_s_row_is_drawn_once(make_config: MakeConfig, base_folder: Path) -> None:
    config = make_config(*FLAGS)
    pipeline = load_pipeline(str(base_folder))
    of_base = drawn_by(pipeline)
    trained = add_trainables(pipeline, {"default": config}, {})
    for parameter in trained.parameters():
        parameter.data.add_(1.0)
    validation = Validation(pipeline, trained, "default", config, pipeline.device)
    validation.draw(3)  # asked for, in a run that drew nothing at step 0
    folder = config.run.output_dir / "validation"
    base = folder / "pictures" / "base-00.png"
    np.testing.assert_array_equal(pixels(base), of_base[0])
    assert not np.array_equal(pixels(base), pixels(folder / "pictures" / "000003-00.png"))
    before = base.stat().st_mtime_ns
    validation.draw(6)
    assert base.stat().st_mtime_ns == before
    other = make_config(*FLAGS, "--validation_prompt", "sks", "a car")
    Validation(pipeline, trained, "default", other, pipeline.device).draw(9)
    assert base.stat().st_mtime_ns != before
    # The strip leaves out the steps whose pictures are of other prompts.
    assert pixels(folder / "progress.png").shape == pixels(folder / "000009.png").shape


@pytest.mark.parametrize("method", ["loldu", "lora"])
def test_prompts_without_the_token_are_the_base_s(
    method: str, make_config: MakeConfig, base_folder: Path
) -> None:
    config = make_config(*FLAGS, "--token", "sks", "--method", method)
    pipeline = load_pipeline(str(base_folder))
    trained = add_trainables(pipeline, {"default": config}, {})
    for parameter in trained.parameters():
        parameter.data.add_(1.0)
    folder = config.run.output_dir / "validation" / "pictures"

    def unchanged(config: Config) -> list[bool]:
        Validation(pipeline, trained, "default", config, pipeline.device).draw(3)
        return [
            np.array_equal(pixels(folder / f"base-0{i}.png"), pixels(folder / f"000003-0{i}.png"))
            for i in range(2)
        ]

    assert unchanged(config) == [False, method == "loldu"]
    always_on = make_config(*FLAGS, "--token", "sks", "--method", method, "--always_on")
    assert unchanged(always_on) == [False, False]
    assert type(pipeline) is StableDiffusionPipeline


def test_full_training_draws_the_base_only_at_step_0(
    make_config: MakeConfig, base_folder: Path
) -> None:
    config = make_config(*FLAGS, "--method", "dreambooth")
    pipeline = load_pipeline(str(base_folder))
    trained = add_trainables(pipeline, {"default": config}, {})
    validation = Validation(pipeline, trained, "default", config, pipeline.device)
    alone = validation.draw(3)
    validation.draw(0)
    below = validation.draw(3)
    assert alone is not None
    assert below is not None
    assert below.height == alone.height + ROW_PX


def test_the_instance_prompt_is_the_default_sample_prompt(
    make_config: MakeConfig, base_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = make_config()
    pipeline = load_pipeline(str(base_folder))
    trained = add_trainables(pipeline, {"default": config}, {})
    assert Validation(pipeline, trained, "default", config, pipeline.device).draw(3) is not None
    picture = config.run.output_dir / "validation" / "pictures" / "000003-00.png"
    with Image.open(picture) as image:
        assert image.info["parameters"].startswith("a photo of sks toy\n")
    silent = make_config("--instance_prompt", "")
    assert Validation(pipeline, trained, "default", silent, pipeline.device).draw(3) is None
    assert "There is nothing to draw: give --validation_prompt." in caplog.messages


def test_a_sheet_has_its_prompts_above_its_columns() -> None:
    red, blue = (Image.new("RGB", (160, 160), colour) for colour in ("red", "blue"))
    rows = [("base", [red, blue])]
    short = np.asarray(sheet(rows, ["one", "two"], 160))
    long = np.asarray(sheet(rows, ["one", "two " * 30], 160))
    assert long.shape[0] > short.shape[0]
    heading = long[:-ROW_PX]
    left, right = heading[:, -2 * ROW_PX : -ROW_PX], heading[:, -ROW_PX:]
    assert 0 < (left < 128).sum() < (right < 128).sum()
    assert (heading[:, -GAP_PX:] == 255).all()  # no word runs out of its column
    unbroken = np.asarray(sheet(rows, ["one", "w" * 100], 160))
    assert (unbroken[:-ROW_PX, -GAP_PX:] == 255).all()
