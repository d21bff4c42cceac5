"""The subject alone: masks of pictures, who makes them, and what likeness they give."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor

from eval.__main__ import run
from eval.config import ModelsConfig
from eval.encoders.encoder import Encoder
from eval.encoders.load import load_clip, load_dino
from eval.encoders.segmenter import ModelSegmenter, choose_mask, load_segmenter
from eval.encoders.subject import subject_alone
from loldu.errors import LoLDUError
from tests.eval.noise import save_noise

MASK = "-masklabel.png"


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def box_mask(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", size)
    mask.paste(255, box)
    return mask


@settings(deadline=None)
@given(width=st.integers(1, 40), height=st.integers(1, 40), seed=st.integers(0, 99))
def test_a_mask_of_everything_is_no_mask(width: int, height: int, seed: int) -> None:
    image = picture(width, height, seed)
    alone = subject_alone(image, Image.new("L", image.size, 255))
    assert alone is not None
    assert (alone.size, alone.tobytes()) == (image.size, image.tobytes())


@settings(deadline=None)
@given(data=st.data(), width=st.integers(2, 30), height=st.integers(2, 30))
def test_the_background_is_gray_and_the_subject_whole_if_a_square_holds_it(
    data: st.DataObject, width: int, height: int
) -> None:
    left, right = sorted(data.draw(st.lists(st.integers(0, width), min_size=2, max_size=2)))
    top, bottom = sorted(data.draw(st.lists(st.integers(0, height), min_size=2, max_size=2)))
    box = (left, top, max(right, left + 1), max(bottom, top + 1))
    if box[2] > width or box[3] > height:
        return
    image = picture(width, height)
    alone = subject_alone(image, box_mask(image.size, box))
    assert alone is not None
    expected = np.full((height, width, 3), 128, dtype=np.uint8)
    expected[box[1] : box[3], box[0] : box[2]] = np.asarray(image)[box[1] : box[3], box[0] : box[2]]
    side = max(box[2] - box[0], box[3] - box[1])
    assert alone.size == (min(side, width), min(side, height))
    found = [
        (x, y)
        for x in range(width - alone.width + 1)
        for y in range(height - alone.height + 1)
        if np.array_equal(np.asarray(alone), expected[y : y + alone.height, x : x + alone.width])
        and x <= box[0]
        and x + alone.width >= box[2]
        and y <= box[1]
        and y + alone.height >= box[3]
    ]
    assert found


def test_a_black_mask_shows_no_subject() -> None:
    assert subject_alone(picture(8, 6), Image.new("L", (8, 6), 100)) is None


@pytest.fixture
def drawn(tmp_path: Path) -> list[Path]:
    """Return two generated pictures; their masks, and those of the two real ones, mark a part."""
    paths = save_noise(tmp_path / "drawn", ["0.png", "1.png"])
    real = save_noise(tmp_path / "real", ["0.png", "1.png"], seed=1)
    (tmp_path / "masks").mkdir()
    for number, path in enumerate(paths):
        box_mask((32, 32), (2, 4, 20 + number, 30)).save(tmp_path / "masks" / path.name)
    for path in real:
        box_mask((32, 32), (8, 8, 24, 24)).save(path.with_name(path.stem + MASK))
    return paths


def command(tmp_path: Path, scoring: list[str], *more: str) -> list[str]:
    folders = ["--generated", str(tmp_path / "drawn"), "--real", str(tmp_path / "real")]
    out = ["--json", str(tmp_path / "out.json"), "--overwrite", "--bootstrap_samples", "5"]
    return ["images", *folders, *scoring, *out, *more]


def scores(tmp_path: Path) -> dict[str, list[float]]:
    (subject,) = json.loads((tmp_path / "out.json").read_text())["subjects"].values()
    names = ("dino", "dino_subject", "clip_i", "clip_i_subject")
    return {name: [one[name] for one in subject["pictures"]] for name in names}


def test_likeness_of_the_subject_alone(
    drawn: list[Path], tmp_path: Path, scoring: list[str], clip_folder: Path, dino_folder: Path
) -> None:
    assert run(command(tmp_path, scoring, "--segmenter", str(tmp_path / "masks"))) == 0
    got = scores(tmp_path)

    def alone(path: Path, box: tuple[int, int, int, int], crop: Sequence[int]) -> Image.Image:
        pixels = np.full((32, 32, 3), 128, dtype=np.uint8)
        inside = slice(box[1], box[3]), slice(box[0], box[2])
        pixels[inside] = np.asarray(Image.open(path))[inside]
        left, top, right, bottom = crop
        return Image.fromarray(pixels).crop((left, top, right, bottom))

    ours = [
        alone(drawn[0], (2, 4, 20, 30), (0, 4, 26, 30)),  # a square, moved into the picture
        alone(drawn[1], (2, 4, 21, 30), (0, 4, 26, 30)),
    ]
    real = [alone(tmp_path / "real" / f"{n}.png", (8, 8, 24, 24), (8, 8, 24, 24)) for n in (0, 1)]
    for name, encoder in (
        ("dino", load_dino(str(dino_folder))),
        ("clip_i", load_clip(str(clip_folder))),
    ):
        a, b = (encoder.encode_images(images).double() for images in (ours, real))
        expected = torch.cosine_similarity(a[:, None], b[None], dim=-1).mean(1)
        assert got[f"{name}_subject"] == pytest.approx(expected.tolist(), abs=1e-5)
        assert got[f"{name}_subject"] != pytest.approx(got[name], abs=1e-3)
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["extractors"]["dino_subject"]["weights"].endswith("by a folder of masks")


def test_white_masks_score_as_no_masks_and_black_ones_0(
    drawn: list[Path], tmp_path: Path, scoring: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (*(tmp_path / "masks").iterdir(), *(tmp_path / "real").glob(f"*{MASK}")):
        Image.new("L", (32, 32), 255).save(path)
    flags = command(tmp_path, scoring, "--segmenter", str(tmp_path / "masks"))
    assert run(flags) == 0
    got = scores(tmp_path)
    for name in ("dino", "clip_i"):
        assert got[f"{name}_subject"] == pytest.approx(got[name], abs=1e-6)
    Image.new("L", (32, 32)).save(tmp_path / "masks" / "1.png")
    assert run(flags) == 0
    after = scores(tmp_path)
    assert after["dino_subject"] == pytest.approx([got["dino"][0], 0], abs=1e-6)
    assert after["dino"] == got["dino"]
    Image.new("L", (32, 32)).save(tmp_path / "real" / f"0{MASK}")
    capsys.readouterr()
    assert run(flags) == 2
    assert "of the real picture" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda f: (f / "masks" / "1.png").unlink(), "has no mask of"),
        (lambda f: (f / "real" / f"1{MASK}").unlink(), "1-masklabel.png beside it"),
        (lambda f: Image.new("L", (8, 32), 255).save(f / "masks" / "0.png"), "the same shape"),
    ],
)
def test_missing_and_wrong_masks_are_named(
    broken: Any,  # noqa: ANN401
    message: str,
    drawn: list[Path],
    tmp_path: Path,
    scoring: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken(tmp_path)
    assert run(command(tmp_path, scoring, "--segmenter", str(tmp_path / "masks"))) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


def test_a_folder_of_masks_repeats_folders_where_names_are_equal(tmp_path: Path) -> None:
    masks, drawn = tmp_path / "masks", tmp_path / "drawn"
    paths = [*save_noise(drawn / "cup", ["0.png"]), *save_noise(drawn / "dog", ["0.png"])]
    for place in ("cup/0.png", f"drawn/dog/0{MASK}"):
        (masks / place).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (32, 32), 255).save(masks / place)
    segmenter = load_segmenter(ModelsConfig(segmenter=str(masks)), "cpu")
    assert segmenter is not None
    found = segmenter.masks(paths, None)
    assert [found[path] for path in paths] == [
        masks / "cup" / "0.png",
        masks / "drawn" / "dog" / f"0{MASK}",
    ]
    (masks / "cup" / "0.png").rename(masks / "0.png")
    (masks / "drawn" / "dog" / f"0{MASK}").unlink()
    with pytest.raises(LoLDUError, match=r"have the same mask .*such as cup/0\.png"):
        segmenter.masks(paths, None)


def part(*rows: int) -> np.ndarray:
    mask = np.zeros((10, 10), dtype=bool)
    mask[list(rows)] = True
    return mask


def test_the_mask_of_the_class_or_else_the_one_in_the_middle() -> None:
    dogs = [("dog", part(0)), ("hot dog", part(5)), ("dogma", part(6)), ("cat", part(2, 3))]
    chosen = choose_mask(dogs, "Dog", ["dog", "cat", "hot dog", "dogma"])
    assert chosen is not None
    assert chosen.any(1).nonzero()[0].tolist() == [0, 5]
    assert choose_mask(dogs[3:], "dog", ["dog", "cat"]) is None
    toy = part()
    toy[3:8, 2:7] = True
    unnamed = [(None, part(0, 1)), (None, toy), (None, part(*range(10))), (None, ~toy)]
    assert choose_mask(unnamed, "dog") is toy
    assert choose_mask([("background", part(5)), ("x", part())], None) is None
    assert choose_mask([], None) is None


@pytest.fixture(scope="module")
def segformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a tiny random model for image segmentation that knows a toy and a background."""
    folder = tmp_path_factory.mktemp("segformer")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "num_encoder_blocks": 1,
        "depths": [1],
        "sr_ratios": [1],
        "hidden_sizes": [8],
        "patch_sizes": [3],
        "strides": [2],
        "num_attention_heads": [1],
        "mlp_ratios": [1],
        "decoder_hidden_size": 8,
        "id2label": {0: "background", 1: "toy"},
        "label2id": {"background": 0, "toy": 1},
    }
    SegformerForSemanticSegmentation(SegformerConfig(**sizes)).save_pretrained(folder)
    SegformerImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_a_model_makes_masks_once(
    drawn: list[Path],
    tmp_path: Path,
    scoring: list[str],
    segformer: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The masks of the real pictures without one are made too; features are those of the masks."""
    for path in (tmp_path / "real").glob(f"*{MASK}"):
        path.unlink()
    with_cache = [flag for flag in scoring if flag != "--no_cache"]
    cache = ("--cache_file", str(tmp_path / "cache" / "features.sqlite"))
    model = ("--segmenter", str(segformer), "--class_name", "toy")
    flags = command(tmp_path, with_cache, *cache, *model)
    assert run(flags) == 0
    first = scores(tmp_path)
    made = sorted((tmp_path / "cache" / "masks").iterdir())
    assert len(made) == 4
    inside = [np.asarray(Image.open(path)) > 0 for path in made]
    assert all(mask.any() and not mask.all() for mask in inside)
    segmenter = load_segmenter(ModelsConfig(segmenter=str(segformer), cache=False), "cpu")
    assert isinstance(segmenter, ModelSegmenter)
    found = segmenter.pipeline(Image.open(drawn[0]))
    toy = next(np.asarray(one["mask"]) > 0 for one in found if one["label"] == "toy")
    assert any(np.array_equal(toy, mask) for mask in inside)

    def never(*arguments: object) -> None:
        raise AssertionError("a network ran again")

    monkeypatch.setattr(ModelSegmenter, "_candidates", never)
    monkeypatch.setattr(Encoder, "encode_pixels", never)
    assert run(flags) == 0
    assert scores(tmp_path) == first
    assert run([*flags, "--segmenter", str(tmp_path / "nothing")]) == 2
    assert "is neither a folder of masks nor a model" in capsys.readouterr().err


def test_masks_of_mask_generation_have_no_labels(tmp_path: Path) -> None:
    (path,) = save_noise(tmp_path, ["0.png"])
    mask = np.zeros((32, 32), dtype=bool)
    mask[6:26, 6:26] = True

    class Sam:
        task = "mask-generation"
        model = torch.nn.Linear(1, 1)
        model.config = SimpleNamespace()

        def __call__(self, image: Image.Image) -> dict[str, Any]:
            return {"masks": [torch.tensor(~mask), torch.tensor(mask)], "scores": [0.99, 0.5]}

    segmenter = ModelSegmenter(Sam(), tmp_path / "masks")
    (made,) = segmenter.masks([path, path], "toy").values()
    assert np.array_equal(np.asarray(Image.open(made)) > 0, mask)
