import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from loldu import ConceptError, load_concept, read_concept
from tests.webui.conftest import teach
from trainer.base import load_pipeline
from trainer.errors import TrainerError
from trainer.sampling import sample_images
from webui import drawing
from webui.drawing import Request, Studio

Report = Callable[[int, int], None]
REQUEST = Request("a photo of a toy", seed=5, count=2, num_inference_steps=2, guidance_scale=3.0)


def pixels(images: list[Image.Image]) -> list[list[int]]:
    return [np.asarray(image).flatten().tolist() for image in images]


def drawn_apart(
    base: Path,
    concept: Path | None = None,
    strength: float = 1.0,
    **options: Any,  # noqa: ANN401
) -> list[list[int]]:
    """The same pictures from a fresh pipeline, one at a time."""
    pipeline = load_pipeline(str(base), **options)
    if concept:
        load_concept(pipeline, concept, strength=strength)
    images = []
    for seed in (5, 6):
        images += sample_images(
            pipeline, [REQUEST.prompt], [seed], num_inference_steps=2, guidance_scale=3.0
        )
    return pixels(images)


def test_base_and_concept_are_drawn_as_a_fresh_pipeline_draws_them(
    studio: Studio, base_folder: Path, runs: Path, report: Report
) -> None:
    base = str(base_folder)
    without = studio.draw_base(base, REQUEST, report)
    rabbit = studio.draw_concept(base, "rabbit", 1.0, REQUEST, report)
    half = studio.draw_concept(base, "rabbit", 0.5, REQUEST, report)
    house = studio.draw_concept(base, "house", 1.0, REQUEST, report)
    again = studio.draw_concept(base, "rabbit", 1.0, REQUEST, report)

    file = runs / "rabbit" / "concept.safetensors"
    assert pixels(without) == drawn_apart(base_folder)
    assert pixels(rabbit) == pixels(again) == drawn_apart(base_folder, file)
    assert pixels(half) == drawn_apart(base_folder, file, 0.5)
    assert pixels(house) == drawn_apart(base_folder, runs / "house" / "concept.safetensors")
    assert len({str(pixels(images)) for images in (without, rabbit, half, house)}) == 4


def test_the_base_is_read_as_it_was_for_training(
    base_folder: Path, runs: Path, tmp_path: Path, report: Report
) -> None:
    file = tmp_path / "epsilon" / "concept.safetensors"
    shutil.copytree(runs / "house", file.parent)
    file.with_name("config.toml").write_text(
        "[base]\npretrained_model_name_or_path = 'elsewhere'\nprediction_type = 'epsilon'\n"
    )
    studio, base = Studio(tmp_path), str(base_folder)
    with_name = studio.draw_base(base, REQUEST, report, "epsilon")
    assert pixels(with_name) == drawn_apart(base_folder, prediction_type="epsilon")
    assert pixels(with_name) != pixels(studio.draw_base(base, REQUEST, report))


def test_strength_zero_is_the_base(studio: Studio, base_folder: Path, report: Report) -> None:
    base = str(base_folder)
    at_zero = studio.draw_concept(base, "rabbit", 0, REQUEST, report)
    assert pixels(at_zero) == pixels(studio.draw_base(base, REQUEST, report))


def test_the_base_is_loaded_once_and_its_weights_stay(
    studio: Studio, base_folder: Path, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = []

    def load(**options: Any) -> StableDiffusionPipeline:  # noqa: ANN401
        loaded.append(load_pipeline(**options))
        return loaded[-1]

    monkeypatch.setattr(drawing, "load_pipeline", load)
    base = str(base_folder)
    studio.draw_base(base, REQUEST, report)
    (pipeline,) = loaded
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    for name, strength in (("rabbit", 1.5), ("house", 0.3)):
        studio.draw_concept(base, name, strength, REQUEST, report)
    assert len(loaded) == 1
    after = {
        name.replace(".base_layer.", "."): value
        for name, value in pipeline.unet.state_dict().items()
    }
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert list(pipeline.unet.peft_config) == [pipeline.get_active_adapters()[0]]


def test_every_pass_is_reported_and_the_base_is_not_drawn_twice(
    studio: Studio, base_folder: Path, report: Report, ticks: list[tuple[int, int]]
) -> None:
    base = str(base_folder)
    many = Request("a toy", seed=0, count=5, num_inference_steps=3, guidance_scale=3.0)
    first = studio.draw_base(base, many, report)
    assert ticks == [(done, 6) for done in range(1, 7)]  # two batches, of four and of one
    assert studio.draw_base(base, many, report) is first
    assert len(ticks) == 6
    studio.draw_concept(base, "rabbit", 1.0, many, report)
    assert len(ticks) == 12
    studio.draw_base(base, REQUEST, report)
    assert len(ticks) == 14


def test_a_concept_trained_again_is_read_again(
    base_folder: Path, tmp_path: Path, report: Report
) -> None:
    studio, file = Studio(tmp_path), tmp_path / "toy" / "concept.safetensors"
    base = str(base_folder)
    teach(base_folder, file, 0, None)
    first = studio.draw_concept(base, "toy", 1.0, REQUEST, report)
    file.unlink()
    teach(base_folder, file, 1, None)
    assert pixels(studio.draw_concept(base, "toy", 1.0, REQUEST, report)) != pixels(first)


def test_facts(studio: Studio, runs: Path) -> None:
    facts, file = studio.facts("rabbit"), runs / "rabbit" / "concept.safetensors"
    layers = read_concept(file).layers
    assert facts.prompt == "a photo of a sks <b>toy</b>"
    assert facts.layers == len(layers) == 32
    assert facts.numbers == 32 * 4
    assert facts.bytes == file.stat().st_size
    assert (facts.num_inference_steps, facts.guidance_scale) == (7, 2.5)
    assert studio.facts("house").guidance_scale is None


def test_a_file_from_elsewhere(
    studio: Studio, base_folder: Path, runs: Path, tmp_path: Path, report: Report
) -> None:
    file = tmp_path / "rabbit.safetensors"
    shutil.copy(runs / "rabbit" / "concept.safetensors", file)
    name = studio.open(file)
    assert next(iter(studio.concepts())) == name
    assert studio.facts(name).prompt == studio.facts("rabbit").prompt
    drawn = studio.draw_concept(str(base_folder), name, 1.0, REQUEST, report)
    assert pixels(drawn) == drawn_apart(base_folder, file)
    with pytest.raises(ConceptError, match=r"^concept.safetensors is not a readable"):
        studio.open(runs / "broken" / "concept.safetensors")
    assert len(studio.concepts()) == 4


def test_mistakes_leave_the_studio_working(
    studio: Studio, base_folder: Path, runs: Path, tmp_path: Path, report: Report
) -> None:
    base = str(base_folder)
    good = studio.draw_concept(base, "rabbit", 1.0, REQUEST, report)

    other = load_pipeline(base)
    for weight in other.unet.parameters():
        weight.data.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    foreign = tmp_path / "foreign.safetensors"
    teach(tmp_path / "other", foreign, 0, None)

    for name, error, match in (
        (studio.open(foreign), ConceptError, r"^foreign \(file 1\) was made for another base"),
        ("broken", ConceptError, "^broken is not a readable"),
        ("nowhere", TrainerError, "is gone"),
        (None, TrainerError, "No concept is chosen"),
    ):
        with pytest.raises(error, match=match):
            studio.draw_concept(base, name, 1.0, REQUEST, report)
    with pytest.raises(TrainerError, match="does not exist"):
        studio.draw_base(str(tmp_path / "nothing"), REQUEST, report)

    assert pixels(studio.draw_concept(base, "rabbit", 1.0, REQUEST, report)) == pixels(good)
