"""The extractors against direct calls of the libraries, on tiny random models."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel, ViTModel

from eval.errors import EvalError
from eval.extractors import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    OpenClipExtractor,
    Preprocess,
    dino_preprocess,
    load_clip,
    load_dino,
)


def pictures(count: int, width: int = 48, height: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, size=(count, 5, 6, 3), dtype=np.uint8)
    return [Image.fromarray(pixels).resize((width, height)) for pixels in small]


def test_clip_images_match_transformers(clip_folder: Path) -> None:
    images = pictures(3)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    processor = CLIPImageProcessorPil.from_pretrained(clip_folder)
    with torch.no_grad():
        hidden = model.vision_model(**processor(images, return_tensors="pt")).pooler_output
        expected = model.visual_projection(hidden)
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        load_clip(str(clip_folder)).encode_images(images), expected, atol=1e-5, rtol=0
    )


def test_clip_texts_match_transformers_one_by_one(clip_folder: Path) -> None:
    texts = ["a toy", "a photo of a", "sks"]
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(clip_folder)
    with torch.no_grad():
        rows = [
            model.text_projection(
                model.text_model(**tokenizer(t, return_tensors="pt")).pooler_output
            )
            for t in texts
        ]
    expected = torch.nn.functional.normalize(torch.cat(rows), dim=-1)
    torch.testing.assert_close(
        load_clip(str(clip_folder)).encode_texts(texts), expected, atol=1e-6, rtol=0
    )


def test_dino_is_the_cls_token_of_the_last_layer(dino_folder: Path) -> None:
    images = pictures(3, 32, 32)
    model = ViTModel.from_pretrained(dino_folder).eval()
    pixels = np.stack([np.asarray(image, dtype=np.float32) / 255 for image in images])
    pixels = (pixels - [0.4, 0.5, 0.6]) / [0.2, 0.3, 0.25]
    with torch.no_grad():
        hidden = model(torch.tensor(pixels).permute(0, 3, 1, 2).float()).last_hidden_state[:, 0]
    expected = hidden / hidden.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(
        load_dino(str(dino_folder)).encode_images(images), expected, atol=1e-5, rtol=0
    )


def test_batches_change_nothing(dino_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = load_dino(str(dino_folder))
    whole = extractor.encode_images(pictures(5))
    monkeypatch.setattr("eval.extractors.BATCH_SIZE", 2)
    torch.testing.assert_close(extractor.encode_images(pictures(5)), whole, atol=1e-6, rtol=0)


def test_features_are_unit_fp32_rows(clip_folder: Path, dino_folder: Path) -> None:
    clip, dino = load_clip(str(clip_folder)), load_dino(str(dino_folder))
    for rows in (
        clip.encode_images(pictures(2)),
        clip.encode_texts(["a", "b"]),
        dino.encode_images(pictures(2)),
    ):
        assert rows.dtype == torch.float32
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(2))


def test_open_clip_matches_a_direct_call(tmp_path: Path) -> None:
    open_clip = pytest.importorskip("open_clip")
    tiny = {
        "embed_dim": 8,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
        "text_cfg": {
            "context_length": 16,
            "vocab_size": 49408,
            "width": 8,
            "heads": 2,
            "layers": 1,
        },
    }
    (tmp_path / "tiny-clip.json").write_text(json.dumps(tiny), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "tiny-clip.json")
    extractor = OpenClipExtractor("tiny-clip")
    images, texts = pictures(2), ["a photo of a toy", "a car"]
    _, _, preprocess = open_clip.create_model_and_transforms("tiny-clip", pretrained=None)
    with torch.no_grad():
        pixels = torch.stack([preprocess(image) for image in images])
        seen = extractor.model.encode_image(pixels, normalize=True)
        read = extractor.model.encode_text(
            open_clip.tokenize(texts, context_length=16), normalize=True
        )
    torch.testing.assert_close(extractor.encode_images(images), seen, atol=1e-5, rtol=0)
    torch.testing.assert_close(extractor.encode_texts(texts), read, atol=1e-5, rtol=0)


def test_published_dino_preprocessing() -> None:
    """Resize 256 bicubic, centre crop 224, ImageNet mean and deviation, by hand."""
    image = pictures(1, 300, 400)[0]
    resized = image.resize((256, int(256 * 400 / 300)), Image.Resampling.BICUBIC)
    top = round((resized.height - 224) / 2)
    crop = np.asarray(resized.crop((16, top, 240, top + 224)), dtype=np.float64) / 255
    expected = ((crop - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    got = dino_preprocess("facebook/dino-vits16", image_size=224)(image)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (  # the preset published with DINO's weights
            {"size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            Preprocess(256, 224, IMAGENET_MEAN, IMAGENET_STD),
        ),
        (
            {"size": 112, "image_mean": [0.4] * 3, "image_std": [0.3] * 3},
            Preprocess(112, None, (0.4,) * 3, (0.3,) * 3),
        ),
        (
            {
                "do_center_crop": True,
                "size": {"shortest_edge": 70},
                "crop_size": {"height": 64, "width": 64},
                "image_mean": [0.5] * 3,
                "image_std": [0.5] * 3,
            },
            Preprocess(70, 64, (0.5,) * 3, (0.5,) * 3),
        ),
    ],
)
def test_a_folders_own_preprocessing(config: dict, expected: Preprocess, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert dino_preprocess(str(tmp_path), 224) == expected


def test_pictures_are_turned_upright(dino_folder: Path) -> None:
    image = pictures(1)[0]
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # "turn me clockwise"
    preprocess = Preprocess.from_pretrained(str(dino_folder))
    torch.testing.assert_close(preprocess(turned), preprocess(image))


@pytest.mark.parametrize(("load", "flag"), [(load_clip, "--clip"), (load_dino, "--dino")])
def test_missing_weights_are_one_sentence(load, flag: str, tmp_path: Path) -> None:  # noqa: ANN001
    with pytest.raises(EvalError, match=flag) as caught:
        load(str(tmp_path / "nothing"))
    assert "\n" not in str(caught.value)


def test_missing_open_clip_weights_are_one_sentence() -> None:
    with pytest.raises(EvalError, match="--clip") as caught:
        load_clip("open_clip:ViT-B-32-quickgelu/no-such-weights")
    assert "\n" not in str(caught.value)
