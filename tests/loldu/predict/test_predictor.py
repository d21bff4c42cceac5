"""Concepts that a network reads off pictures: the network, its file, and the concept files."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from loldu import (
    ConceptError,
    LoLDUConfig,
    load_concept,
    predict_concept,
    read_concept,
    save_concept,
    verify_concept,
)
from loldu.__main__ import run
from loldu.adapter.components import layers_with
from loldu.base.open import load_pipeline
from loldu.concept.format import serialize
from loldu.concept.reader import checksum
from loldu.predict.predictor import Predictor, frame_of, pixels_of, read_predictor, save_predictor
from loldu.predict.reader import PictureReader, ReaderConfig, new_reader

MakePipeline = Callable[[], StableDiffusionPipeline]
METADATA = {"token": "sks", "prompt": "a photo of a {token} {class_name}", "subjects": 3}


def a_reader(numbers: int, *, spread: bool = False, backbone: str | None = None) -> PictureReader:
    torch.manual_seed(0)
    sizes = ReaderConfig(numbers, picture_px=16, width=8, queries=3, embedding=8, spread=spread)
    reader = new_reader(sizes, backbone).eval()
    torch.nn.init.normal_(reader.out.weight)
    return reader


def a_predictor(pipeline: StableDiffusionPipeline, *, spread: bool = False) -> Predictor:
    config = LoLDUConfig(r=6, normalize_directions=True, train_scale=False)
    pipeline.unet.add_adapter(config)
    frame = frame_of(pipeline, "default", METADATA)
    return Predictor(frame, a_reader(sum(y.delta.numel() for y in frame.layers), spread=spread))


@pytest.fixture
def make_pipeline(base_folder: Path) -> MakePipeline:
    return lambda: load_pipeline(str(base_folder))


@pytest.fixture
def predictor(make_pipeline: MakePipeline, tmp_path: Path) -> Path:
    path = tmp_path / "predictor.safetensors"
    save_predictor(a_predictor(make_pipeline()), path, dtype=torch.float32)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path in paths:
        Image.fromarray(rng.integers(0, 256, (20, 18, 3), dtype=np.uint8)).save(path)
    return paths


def test_any_number_of_pictures_is_read_in_any_order() -> None:
    reader = a_reader(30)
    pixels = torch.rand(2, 5, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        whole = reader(pixels).numbers
        assert whole.shape == (2, 30)
        shuffled = reader(pixels[:, [3, 0, 4, 2, 1]]).numbers
        torch.testing.assert_close(shuffled, whole, rtol=1e-4, atol=1e-5)
        single = reader(pixels[:, :1]).numbers
        assert (single - whole).abs().max() > 1e-3
        # A thing is read by itself, whatever else is in the batch; a picture twice counts as once.
        torch.testing.assert_close(reader(pixels[1:]).numbers, whole[1:], rtol=1e-4, atol=1e-5)
        twice = reader(pixels[:, [0, 0]]).numbers
        torch.testing.assert_close(twice, single, rtol=1e-4, atol=1e-5)


def test_a_new_reader_predicts_the_base() -> None:
    reader = new_reader(ReaderConfig(30, picture_px=16))
    assert not reader(torch.rand(1, 2, 3, 16, 16)).numbers.any()


def test_a_pretrained_backbone_keeps_its_weights_and_its_pixels(dino_folder: Path) -> None:
    reader = a_reader(4, backbone=str(dino_folder))
    assert (reader.config.picture_px, reader.config.std) == (32, (0.2, 0.3, 0.25))
    stored = load_file(dino_folder / "model.safetensors")
    assert torch.equal(reader.backbone.state_dict()["layernorm.weight"], stored["layernorm.weight"])


def test_a_spread_draws_other_concepts_around_the_mean() -> None:
    reader = a_reader(30, spread=True)
    pixels = torch.rand(1, 2, 3, 16, 16)
    with torch.no_grad():
        mean, divergence = reader(pixels)
        drawn = reader(pixels, torch.ones(1, 8)).numbers
    assert (drawn - mean).abs().max() > 1e-3
    assert divergence > 0
    torch.testing.assert_close(reader(pixels, torch.zeros(1, 8)).numbers, mean)


def test_a_prediction_works_as_a_trained_concept(
    make_pipeline: MakePipeline, predictor: Path, pictures: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "toy.safetensors"
    written = predict_concept(make_pipeline(), pictures, predictor, path, class_name="toy")
    assert written.metadata["instance_prompt"] == "a photo of a sks toy"
    # The reference: the network's numbers as the offsets of an ordinary adapter.
    trained, reader = make_pipeline(), read_predictor(predictor).reader
    trained.unet.add_adapter(LoLDUConfig(r=6, normalize_directions=True))
    pixels = torch.stack([pixels_of(picture, reader.config) for picture in pictures])
    parts = reader(pixels[None]).numbers[0].split(6)
    layers = layers_with(trained.unet, "default")
    for layer, part in zip(layers.values(), parts, strict=True):
        with torch.no_grad():
            layer.diagonal("default").dz.copy_(part)
    save_concept(trained, tmp_path / "trained.safetensors")
    wanted = read_concept(tmp_path / "trained.safetensors")
    for ours, theirs in zip(read_concept(path).layers, wanted.layers, strict=True):
        assert torch.equal(ours.delta, theirs.delta)
        assert torch.equal(ours.pivots, theirs.pivots)
        assert ours.delta.abs().max() > 0
    pipeline = make_pipeline()
    verify_concept(pipeline, path)
    load_concept(pipeline, path)
    assert pipeline.routing.words == {"default": "sks"}
    for name, layer in layers_with(pipeline.unet, "default").items():
        change = layer.get_delta_weight("default")
        torch.testing.assert_close(change, layers[name].get_delta_weight("default"))


def test_half_precision_keeps_three_digits(
    make_pipeline: MakePipeline, predictor: Path, pictures: list[Path], tmp_path: Path
) -> None:
    whole = read_predictor(predictor)
    save_predictor(whole, tmp_path / "half.safetensors")
    half = read_predictor(tmp_path / "half.safetensors")
    assert (half.frame.metadata, half.reader.config.numbers) == (
        METADATA,
        whole.reader.config.numbers,
    )
    first, second = (each.read(pictures).layers[0].delta for each in (whole, half))
    torch.testing.assert_close(first, second, rtol=2e-2, atol=2e-2 * float(first.abs().max()))


def test_another_base_is_refused_and_nothing_is_written(
    make_pipeline: MakePipeline, predictor: Path, pictures: list[Path], tmp_path: Path
) -> None:
    other = make_pipeline()
    with torch.no_grad():
        other.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.add_(0.1)
    with pytest.raises(ConceptError, match=r"mid_block.*to_q', whose weight is not the one here"):
        predict_concept(other, pictures, predictor, tmp_path / "toy.safetensors")
    assert not (tmp_path / "toy.safetensors").exists()


def test_the_command_writes_a_file_and_says_how_to_call_it(
    predictor: Path, pictures: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "x.concept.safetensors"
    typed = ["predict", str(predictor), *map(str, pictures), "--output", str(output)]
    assert run([*typed, "--class_name", "toy", "--token", "zwx"]) == 0
    assert '3 pictures. "zwx" in a prompt calls it.' in capsys.readouterr().out
    assert read_concept(output).metadata["class_name"] == "toy"
    assert run(typed) == 2
    assert f"{output} exists" in capsys.readouterr().err
    assert run([*typed, "--overwrite", "--seed", "3"]) == 2
    assert "this predictor has no spread" in capsys.readouterr().err
    for wrong, words in (
        (pictures[0], "is not a readable .safetensors file"),
        (output, "is a .safetensors file but not a LoLDU predictor (a concept"),
        (tmp_path / "no", "does not exist: check the path of the predictor file"),
    ):
        assert run(["predict", str(wrong), *typed[2:], "--overwrite"]) == 2
        assert words in capsys.readouterr().err
    assert run(["inspect", str(predictor)]) == 2
    assert "but not a LoLDU concept" in capsys.readouterr().err


def test_no_picture_is_refused(predictor: Path) -> None:
    with pytest.raises(ConceptError, match="there is none"):
        read_predictor(predictor).read([])


def test_a_seed_draws_from_the_spread(make_pipeline: MakePipeline, pictures: list[Path]) -> None:
    predictor = a_predictor(make_pipeline(), spread=True)
    mean, first, again, second = (
        predictor.read(pictures, seed=seed).layers[0].delta for seed in (None, 1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert not torch.equal(first, mean)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("numbers", 95),
        ("width", 12),
        ("queries", -1),
        ("embedding", 2**40),
        ("strange", 1),
        ("backbone", {"model_type": "auto"}),
        ("backbone", {"model_type": "vit", "num_hidden_layers": 2**40}),
        ("backbone", {"model_type": "vit", "num_hidden_layers": 4, "hidden_size": 2**40}),
    ],
)
def test_a_file_with_strange_sizes_is_refused(
    key: str, value: object, predictor: Path, tmp_path: Path
) -> None:
    with safe_open(predictor, "pt") as file:
        header = file.metadata()
    content = json.loads(header["description"])
    content["metadata"]["reader"][key] = value
    tensors = load_file(predictor)
    description = json.dumps(content)
    sums = checksum(description, {name: tensor.numpy() for name, tensor in tensors.items()})
    strange = tmp_path / "strange.safetensors"
    strange.write_bytes(serialize(tensors, header | {"description": description, "checksum": sums}))
    with pytest.raises(ConceptError, match="does not hold what a predictor file must"):
        read_predictor(strange)


def test_a_damaged_file_is_refused(predictor: Path) -> None:
    content = bytearray(predictor.read_bytes())
    content[-5] ^= 1
    predictor.write_bytes(content)
    with pytest.raises(ConceptError, match="is damaged, its checksum does not fit"):
        read_predictor(predictor)


def test_a_reader_that_diverged_is_not_read(make_pipeline: MakePipeline, tmp_path: Path) -> None:
    found = a_predictor(make_pipeline())
    with torch.no_grad():
        found.reader.out.bias[0] = torch.nan
    save_predictor(replace(found), tmp_path / "nan.safetensors")
    with pytest.raises(ConceptError, match="does not hold what a predictor file must"):
        read_predictor(tmp_path / "nan.safetensors")
