"""DINOv2, DINOv3 and SigLIP against direct calls of transformers, on tiny random models."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BitImageProcessor,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)

from eval.config import CLIP, ModelsConfig
from eval.encoders import load as loading
from eval.encoders.encoder import PatchGrid, TokenEncoder
from eval.encoders.features import compute_features
from eval.encoders.load import load_clip, load_dino, load_encoders
from loldu.errors import LoLDUError
from tests.eval.noise import save_noise

TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 40,
    "patch_size": 8,
}
KINDS: dict[str, tuple[Any, Any, Any, int]] = {
    "dinov2": (Dinov2Model, Dinov2Config(**TOWER, mlp_ratio=2), BitImageProcessor, 0),
    "registers": (
        Dinov2WithRegistersModel,
        Dinov2WithRegistersConfig(**TOWER, mlp_ratio=2, num_register_tokens=3),
        BitImageProcessor,
        3,
    ),
    "dinov3": (
        DINOv3ViTModel,
        DINOv3ViTConfig(**TOWER, intermediate_size=48, num_register_tokens=4),
        DINOv3ViTImageProcessor,
        4,
    ),
}


def pictures(count: int, side: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(3)
    return [
        Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8)) for _ in range(count)
    ]


@pytest.mark.parametrize("name", KINDS)
def test_dino_is_the_cls_token_and_its_patches_are_without_registers(
    name: str, tmp_path: Path
) -> None:
    kind, config, processor, registers = KINDS[name]
    torch.manual_seed(0)
    model = kind(config).eval()
    model.save_pretrained(tmp_path)
    crop = {"size": {"shortest_edge": 40}, "crop_size": {"height": 40, "width": 40}}
    own = processor(**(crop if processor is BitImageProcessor else {"size": 2 * [40]}))
    own.save_pretrained(tmp_path)
    images = pictures(3)
    with torch.no_grad():
        hidden = model(**own(images=images, return_tensors="pt")).last_hidden_state
    assert hidden.shape[1] == 1 + registers + 25
    dino = load_dino(str(tmp_path))
    expected = torch.nn.functional.normalize(hidden[:, 0], dim=-1)
    torch.testing.assert_close(dino.encode_images(images), expected, atol=1e-5, rtol=0)
    assert isinstance(dino, TokenEncoder)
    rows = PatchGrid(dino).encode_images(images).unflatten(1, (32, 4, 4))
    patches = hidden[:, 1 + registers :].reshape(3, 5, 5, 32)
    # Of five patches, the four places see those they touch: 0-1, 1-2, 2-3 and 3-4.
    for down in range(4):
        for across in range(4):
            place = patches[:, down : down + 2, across : across + 2].mean((1, 2))
            place = torch.nn.functional.normalize(place, dim=-1) / 4  # 16 places make length 1
            torch.testing.assert_close(rows[:, :, down, across], place, atol=1e-5, rtol=0)


def test_both_kinds_of_rows_take_one_pass(
    dino_folder: Path, clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = ModelsConfig(clip=str(clip_folder), dino=str(dino_folder))
    encoders = load_encoders(["dino_patches", "dino", "thumbnail"], models, "cpu")
    paths = save_noise(tmp_path, [f"{n}.png" for n in range(5)])
    monkeypatch.setattr("eval.encoders.features.BATCH_SIZE", 2)
    passes = []
    inside = encoders["dino"].model.forward

    def forward(*given: Any, **named: Any) -> Any:  # noqa: ANN401
        passes.append(named)
        return inside(*given, **named)

    monkeypatch.setattr(encoders["dino"].model, "forward", forward)
    found = compute_features(paths, encoders, None)
    assert len(passes) == 3
    alone = load_dino(str(dino_folder)).encode_images([Image.open(path) for path in paths])
    torch.testing.assert_close(found.stack("dino", paths), alone, atol=1e-6, rtol=0)
    assert found.stack("dino_patches", paths).shape == (5, 16 * 16)


def test_siglip_is_that_of_transformers(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    torch.manual_seed(0)
    text = {**TOWER, "vocab_size": len(tokenizer), "max_position_embeddings": 16}
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    tower = {**TOWER, "intermediate_size": 48}
    config = SiglipConfig(
        text_config={**text, **ids, "pad_token_id": tokenizer.pad_token_id, "projection_size": 32},
        vision_config=tower,
    )
    model = SiglipModel(config).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    processor = SiglipImageProcessor(size={"height": 40, "width": 40})
    processor.save_pretrained(tmp_path)
    images, texts = pictures(2), ["a toy", "a photo of a"]
    tokens = tokenizer(texts, padding="max_length", max_length=16, return_tensors="pt")
    with torch.no_grad():
        both = model(
            input_ids=tokens.input_ids,
            pixel_values=processor(images=images, return_tensors="pt")["pixel_values"],
        )
    ours = load_clip(str(tmp_path))
    torch.testing.assert_close(ours.encode_images(images), both.image_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_texts(texts), both.text_embeds, atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.encode_texts(texts[:1]), both.text_embeds[:1])  # alone


def test_short_names_are_published_models(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, dino_folder: Path
) -> None:
    asked = []

    def opened(module: str) -> Any:  # noqa: ANN401
        asked.append(module)
        raise OSError("no weights")

    monkeypatch.setattr(loading, "import_module", opened)
    for load, flag, names in (
        (load_clip, "--clip", {"clip-l": "open_clip:ViT-L-14", "siglip2": "google/siglip2-base"}),
        (load_dino, "--dino", {"dinov2": "facebook/dinov2-base", "dinov3": "facebook/dinov3-v"}),
    ):
        for name, place in names.items():
            with pytest.raises(LoLDUError, match=f"{flag} {place}.* has no usable weights here"):
                load(name)
    assert asked[0] == "eval.encoders.from_open_clip"
    assert loading.NAMES["--clip"]["clip-b"] == CLIP
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    Path("dinov2").symlink_to(dino_folder)
    assert load_dino("dinov2").name == "dinov2"
