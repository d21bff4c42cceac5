"""Requests with different concepts in one pass: each picture is the one that is drawn alone."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch

from loldu import load_concept
from loldu.base.config import BaseModelConfig
from loldu.base.draw import sample_images
from loldu.base.open import load_pipeline
from loldu.errors import LoLDUError
from tests.webui.concepts import teach
from webui.drawing import studio
from webui.drawing.studio import Picture
from webui.serving.order import Ask, Order, read_order
from webui.serving.painter import Painter
from webui.serving.shelf import NoConceptError, Shelf

DEFAULTS = {"num_inference_steps": 2, "guidance_scale": 3.0}
WORDS = ("sks", "dax", "zwx", "vkd", "sks")


@pytest.fixture(scope="module")
def concepts(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of five concepts, two of them with one word, and a damaged file."""
    folder = tmp_path_factory.mktemp("concepts")
    for seed, word in enumerate(WORDS):
        path = folder / f"{'abcde'[seed]}.safetensors"
        teach(base_folder, path, seed, f"a photo of a {word} toy", token=word, class_name="toy")
    (folder / "broken.safetensors").write_bytes(b"no concept")
    return folder


@pytest.fixture
def shelf(concepts: Path) -> Shelf:
    return Shelf(str(concepts))


@pytest.fixture(scope="module")
def painter(concepts: Path, base_folder: Path) -> Painter:
    return Painter(BaseModelConfig(str(base_folder)), "cpu", Shelf(str(concepts)), most_resident=3)


def order(shelf: Shelf, **values: object) -> Order:
    return read_order(json.dumps(values).encode(), shelf, DEFAULTS, 64)


def levels(picture: object) -> np.ndarray:
    assert isinstance(picture, Picture), picture
    return np.asarray(picture.image).astype(int)


MIXED: list[dict[str, Any]] = [
    {"prompt": "a photo of a sks toy", "model": "a", "seed": 1},
    {"prompt": "a photo of a sks toy", "model": "e", "seed": 1},
    {"prompt": "a dax toy in the snow", "seed": 2, "strength": 0.5},
    {"prompt": "zwx", "seed": 3, "negative_prompt": "dark, a dax toy"},
    {"prompt": "a toy", "model": "base", "seed": 1},
    {"prompt": "a vkd toy and a dax toy", "concepts": {"d": 0.7, "b": 1.2}, "seed": 4},
    {"prompt": "a photo of a sks toy", "model": "a", "seed": 9},
    {"prompt": "a photo of a sks toy", "model": "a", "seed": 1, "num_inference_steps": 3},
    {"prompt": "a photo of a sks toy", "model": "a", "seed": 1, "size": "32x32"},
]


def test_a_mixed_batch_equals_the_pictures_drawn_alone(
    painter: Painter, shelf: Shelf, base_folder: Path, concepts: Path
) -> None:
    asks = [order(shelf, **each).asks[0] for each in MIXED]
    together = painter.draw(asks)
    for ask, picture in zip(asks, together, strict=True):
        (alone,) = painter.draw([ask])
        assert np.abs(levels(picture) - levels(alone)).max() <= 1
    assert len({levels(picture).tobytes() for picture in together}) == len(MIXED)
    assert levels(together[-1]).shape == (32, 32, 3)
    pipeline = load_pipeline(str(base_folder))  # a pipeline that nothing here has touched
    load_concept(pipeline, concepts / "a.safetensors")
    (apart,) = sample_images(
        pipeline,
        ["a photo of a sks toy"],
        [1],
        negative_prompts=[""],
        num_inference_steps=2,
        guidance_scale=3.0,
    )
    assert np.abs(levels(together[0]) - np.asarray(apart)).max() <= 1


def test_one_batch_may_have_more_concepts_than_stay_loaded(painter: Painter, shelf: Shelf) -> None:
    asks = [order(shelf, prompt="toy", model=name, seed=5).asks[0] for name in "abcde"]
    together = painter.draw(asks)
    assert len({levels(picture).tobytes() for picture in together}) == 5
    unet: Any = painter._model.pipeline.unet
    adapters = {name for layer in unet.modules() for name in getattr(layer, "r", ())}
    assert len(adapters) == 5
    painter.draw(asks[:1])
    adapters = {name for layer in unet.modules() for name in getattr(layer, "r", ())}
    assert len(adapters) == 3


def test_a_bad_picture_does_not_harm_the_others(
    painter: Painter, shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = [order(shelf, prompt="toy", model=name, seed=5).asks[0] for name in "abc"]
    bad = [Ask("toy", "", ((name, 1.0),), 5, 2, 3.0, None) for name in ("broken", "gone")]
    alone = painter.draw(good)
    drawn = painter.draw([good[0], *bad, *good[1:]])
    assert "broken" in str(drawn[1])
    assert "no concept 'gone'" in str(drawn[2])
    for one, other in zip([drawn[0], *drawn[3:]], alone, strict=True):
        assert np.abs(levels(one) - levels(other)).max() <= 1
    sizes: list[int] = []

    def small(pipeline: Any, prompts: list[str], *args: Any, **kwargs: Any) -> object:  # noqa: ANN401
        sizes.append(len(prompts))
        if len(prompts) > 1:
            raise torch.OutOfMemoryError("too much")
        return sample_images(pipeline, prompts, *args, **kwargs)

    monkeypatch.setattr(studio, "sample_images", small)
    assert all(isinstance(each, Picture) for each in painter.draw(good))
    assert sizes == [3, 1, 2, 1, 1]


def test_a_concept_of_another_reading_of_the_base_is_refused(
    base_folder: Path, concepts: Path, tmp_path: Path
) -> None:
    (tmp_path / "skips").mkdir()
    shutil.copy(concepts / "a.safetensors", tmp_path / "skips" / "concept.safetensors")
    (tmp_path / "skips" / "config.toml").write_text(
        "[base]\npretrained_model_name_or_path = 'elsewhere'\nclip_skip = 1\n"
    )
    shelf = Shelf(str(tmp_path))
    painter = Painter(BaseModelConfig(str(base_folder)), "cpu", shelf)
    (said,) = painter.draw(order(shelf, prompt="toy", model="skips").asks)
    assert "skips was trained with --clip_skip 1, and this server has 0" in str(said)


def test_the_words_of_a_prompt_call_concepts_and_a_named_one_gets_its_words(shelf: Shelf) -> None:
    by_word = order(shelf, prompt="a DAX toy, and a zwx", strength=0.5)
    assert by_word.asks[0].concepts == (("b", 0.5), ("c", 0.5))
    assert by_word.revised_prompt is None
    assert order(shelf, prompt="a daxy toy").asks[0].concepts == ()
    named = order(shelf, prompt="a photo of a toy", model="vkd", n=2, seed=7)
    assert named.revised_prompt == named.asks[1].prompt == "a photo of a vkd toy"
    assert [ask.seed for ask in named.asks] == [7, 8]
    assert named.asks[0].concepts == (("d", 1.0),)
    seeds = {order(shelf, prompt="toy").asks[0].seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({}, "The prompt is empty: say what should be in the picture."),
        ({"prompt": "word " * 10_000}, "has 50,000 characters, and the most is 2,000: shorten it"),
        ({"prompt": "toy", "negative_prompt": "x" * 2001}, "The negative_prompt has 2,001"),
        ({"prompt": "a \ud800 toy"}, "half of a character"),
        ({"prompt": "toy", "model": "aa"}, "no concept 'aa'; perhaps you meant a."),
        ({"prompt": "toy", "model": "../../etc"}, "GET /v1/models lists the concepts."),
        ({"prompt": "a sks toy"}, r"2 concepts have the word 'sks' \(a, e\): name one"),
        ({"prompt": "toy", "model": "broken"}, "broken is not a readable .safetensors file"),
        ({"prompt": "toy", "guidence_scale": 3}, "perhaps you meant guidance_scale"),
        ({"prompt": "toy", "guidance_scale": float("nan")}, "guidance_scale is nan; it must be"),
        ({"prompt": "toy", "n": 1000}, "n is 1000; it must be at least 1 and at most 16."),
        ({"prompt": "toy", "n": "2"}, "n is '2'; it must be a whole number."),
        ({"prompt": "toy", "size": "512x256"}, "pictures are squares of at most 64 pixels"),
        ({"prompt": "toy", "response_format": "url"}, "it must be b64_json"),
        ({"prompt": "toy", "concepts": {"a": 9}}, "a strength from 0 to 1.5"),
        ({"prompt": "toy", "concepts": {"a": 1}, "model": "b"}, "send one of the two"),
        ([], "is not a JSON object"),
    ],
)
def test_a_bad_request_gets_one_sentence(shelf: Shelf, values: Any, sentence: str) -> None:  # noqa: ANN401
    with pytest.raises(LoLDUError, match=sentence) as error:
        read_order(json.dumps(values).encode(), shelf, DEFAULTS, 64)
    assert str(error.value).count("\n") == 0
    assert isinstance(error.value, NoConceptError) == (
        "no concept" in sentence or "GET" in sentence
    )


def test_text_that_is_no_json_is_refused(shelf: Shelf) -> None:
    for content in (b"\xff", b"{", b"[" * 100_000):
        with pytest.raises(LoLDUError, match="is not JSON"):
            read_order(content, shelf, DEFAULTS)


def test_a_shelf_is_a_folder_of_files_of_runs_or_of_the_studio(
    concepts: Path, tmp_path: Path
) -> None:
    for folder, record in (
        ("run", None),
        ("0123", {"name": "My rabbit", "owner": "", "created": 1.0}),
        ("4567", {"name": "Thrown away", "owner": "", "created": 1.0, "removed": 2.0}),
        ("89ab", {"name": "My rabbit", "owner": "you", "created": 1.0}),
    ):
        (tmp_path / folder).mkdir()
        shutil.copy(concepts / "a.safetensors", tmp_path / folder / "concept.safetensors")
        if record:
            (tmp_path / folder / "entry.json").write_text(json.dumps(record))
    shutil.copy(concepts / "b.safetensors", tmp_path / "flat.safetensors")
    shelf = Shelf(str(tmp_path))
    names = shelf.names()
    assert {"run", "flat", "My rabbit"} < {*names}
    assert len(names) == 4
    assert any(name.startswith("My rabbit (") for name in names)
    assert shelf.get("flat").path == tmp_path / "flat.safetensors"
    with pytest.raises(LoLDUError, match=r"--concepts .*nowhere is not a folder"):
        Shelf(str(tmp_path / "nowhere"))
    with pytest.raises(LoLDUError, match=r"--concepts nothing://x cannot be read: Protocol"):
        Shelf("nothing://x")


@pytest.fixture
def remote(concepts: Path) -> Iterator[str]:
    system = fsspec.filesystem("memory")
    system.pipe("/shelf/a.safetensors", (concepts / "a.safetensors").read_bytes())
    yield "memory://shelf"
    system.rm("/shelf", recursive=True)


def test_concepts_may_be_on_an_object_store(
    remote: str, concepts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf = Shelf(remote, tmp_path)
    copy = shelf.get("a").path
    assert copy.parent == tmp_path
    assert copy.read_bytes() == (concepts / "a.safetensors").read_bytes()
    assert shelf.get("a").path == copy
    monkeypatch.setattr("webui.serving.shelf._FRESH_S", 0.0)
    fsspec.filesystem("memory").pipe(
        "/shelf/a.safetensors", (concepts / "b.safetensors").read_bytes()
    )
    assert shelf.facts("a").about.token == "dax"
