"""The published transforms pixel by pixel, and similar ones that differ."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from transformers import (
    BitImageProcessor,
    CLIPImageProcessor,
    DINOv3ViTImageProcessor,
    SiglipImageProcessor,
)
from transformers.image_processing_base import ImageProcessingMixin

from eval.encoders.preprocess import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Preprocess,
    TransformersPreprocess,
    dino_preprocess,
    published_dino,
)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
BICUBIC = transforms.InterpolationMode.BICUBIC
SIZES = [(300, 400), (640, 427), (224, 224), (90, 200)]


def photo(size: tuple[int, int]) -> Image.Image:
    """Return smooth colours with sharp detail, which every step of a transform changes."""
    rng = np.random.default_rng(sum(size))
    coarse = Image.fromarray(rng.integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize(size)
    fine = rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray((np.asarray(coarse) // 2 + fine).astype(np.uint8))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("ours", "resize_px", "mean", "std"),
    [
        (published_dino(), 256, IMAGENET_MEAN, IMAGENET_STD),  # DINO's evaluation code
        (Preprocess(224, 224, CLIP_MEAN, CLIP_STD), 224, CLIP_MEAN, CLIP_STD),  # CLIP's
    ],
)
def test_the_published_transforms(
    ours: Preprocess,
    resize_px: int,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    size: tuple[int, int],
) -> None:
    published = transforms.Compose(
        [
            transforms.Resize(resize_px, interpolation=BICUBIC),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(mean, std),
        ]
    )
    image = photo(size)
    torch.testing.assert_close(ours(image), published(image), atol=0, rtol=0)


def test_our_transform_equals_that_of_open_clip() -> None:
    open_clip = pytest.importorskip("open_clip")
    model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    theirs = open_clip.transform.image_transform_v2(
        open_clip.transform.PreprocessCfg(**open_clip.get_model_preprocess_cfg(model)),
        is_train=False,
    )
    image = photo((300, 400))
    ours = Preprocess(224, 224, CLIP_MEAN, CLIP_STD)(image)
    torch.testing.assert_close(ours, theirs(image), atol=0, rtol=0)


def test_the_published_transform_by_hand() -> None:
    image = photo((300, 400))
    resized = image.resize((256, int(256 * 400 / 300)), Image.Resampling.BICUBIC)
    top = round((resized.height - 224) / 2)
    crop = np.asarray(resized.crop((16, top, 240, top + 224)), dtype=np.float64) / 255
    expected = ((crop - IMAGENET_MEAN) / IMAGENET_STD).transpose(2, 0, 1)
    np.testing.assert_allclose(published_dino()(image).numpy(), expected, atol=1e-6)


def test_the_published_dino_transform_is_not_that_of_timm() -> None:
    """The transform of timm's `vit_small_patch16_224.dino` gives another score."""
    timm = pytest.importorskip("timm")
    config = timm.data.resolve_data_config(
        timm.get_pretrained_cfg("vit_small_patch16_224.dino").to_dict()
    )
    theirs = timm.data.create_transform(**config)
    assert theirs.transforms[0].size == 248
    image = photo((300, 400))
    assert (published_dino()(image) - theirs(image)).abs().mean() > 0.1
    assert dino_preprocess("/no/such/folder", 224).resize_px == 256


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (  # the preset published with DINO's weights, which squashes
            {"size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
            Preprocess(256, 224, IMAGENET_MEAN, IMAGENET_STD),
        ),
        (
            {"size": 112, "image_mean": [0.4] * 3, "image_std": [0.3] * 3},
            Preprocess(112, None, (0.4,) * 3, (0.3,) * 3),
        ),
        (  # DINOv2's
            {
                "do_center_crop": True,
                "size": {"shortest_edge": 256},
                "crop_size": {"height": 224, "width": 224},
                "image_mean": list(IMAGENET_MEAN),
                "image_std": list(IMAGENET_STD),
            },
            TransformersPreprocess(256, 224, IMAGENET_MEAN, IMAGENET_STD),
        ),
        (  # the preset of DINO with the filter that its processor has without one
            {"size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
            Preprocess(256, 224, IMAGENET_MEAN, IMAGENET_STD),
        ),
    ],
)
def test_a_folders_own_preprocessing(config: dict, expected: Preprocess, tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config), encoding="utf-8")
    assert dino_preprocess(str(tmp_path), 224) == expected


CROPPED = {"do_center_crop": True, "crop_size": {"height": 224, "width": 224}, "resample": 3}
OPENAI = {"image_mean": list(CLIP_MEAN), "image_std": list(CLIP_STD)}
PROCESSORS: dict[str, tuple[type[ImageProcessingMixin], dict[str, Any]]] = {
    "facebook/dinov2-base": (BitImageProcessor, {**CROPPED, "size": {"shortest_edge": 256}}),
    "openai/clip-vit-large-patch14": (
        CLIPImageProcessor,
        {**CROPPED, **OPENAI, "size": {"shortest_edge": 224}},
    ),
    "facebook/dinov3-vitb16-pretrain-lvd1689m": (DINOv3ViTImageProcessor, {"resample": 2}),
    "google/siglip2-base-patch16-224": (
        SiglipImageProcessor,
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 2},
    ),
}
"""The image processors that these models were published with."""


@pytest.mark.parametrize("size", [*SIZES, (427, 641), (512, 512), (301, 203)])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_folder_of_transformers_is_preprocessed_as_transformers_does_it(
    name: str, size: tuple[int, int], tmp_path: Path
) -> None:
    """Both round pixels to 8 bits, or not, at other steps, so that some differ by one level."""
    kind, options = PROCESSORS[name]
    statistics = {"image_mean": list(IMAGENET_MEAN), "image_std": list(IMAGENET_STD)}
    theirs = kind(**{"size": {"height": 224, "width": 224}, **statistics, **options})
    theirs.save_pretrained(tmp_path)
    ours = dino_preprocess(str(tmp_path), 224, vit=False)
    image = photo(size)
    expected = theirs(images=[image], return_tensors="pt")["pixel_values"][0]
    levels = (ours(image) - expected).abs() * torch.tensor(ours.std)[:, None, None] * 255
    assert levels.max() < 1.01
    exact = name.startswith("facebook/dinov3")  # whose processor does not round
    assert levels.mean() < (0.35 if exact else 0.02)


def test_the_squashing_preset_is_another_picture() -> None:
    image = photo((300, 400))
    squashed = Preprocess(224, None, (0.5,) * 3, (0.5,) * 3)(image)
    assert (published_dino()(image) - squashed).abs().mean() > 0.1


def test_pictures_are_turned_upright() -> None:
    image = photo((90, 200))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = turned.getexif()
    exif[0x0112] = 6  # "turn me clockwise"
    torch.testing.assert_close(published_dino()(turned), published_dino()(image))
