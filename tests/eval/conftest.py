"""Tiny random scoring models, saved as the folders that people pass."""

import json
from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    ViTConfig,
    ViTModel,
)

from tests.trainer.conftest import base_folder as base_folder
from tests.trainer.conftest import tokenizer as tokenizer


@pytest.fixture(scope="session")
def clip_folder(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random CLIPModel with tokenizer and image processor, for pictures of 32 pixels."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    tower = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id")}
    config = CLIPConfig(
        text_config={**tower, **ids, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dino_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random ViTModel for pictures of 32 pixels that asks for no crop."""
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(1)
    config = ViTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
    )
    ViTModel(config).save_pretrained(folder)
    preprocessing = {
        "do_center_crop": False,
        "size": {"height": 32, "width": 32},
        "image_mean": [0.4, 0.5, 0.6],
        "image_std": [0.2, 0.3, 0.25],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing), encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def scoring(clip_folder: Path, dino_folder: Path) -> list[str]:
    """The flags of the tiny models, and of no cache."""
    models = ["--clip", str(clip_folder), "--dino", str(dino_folder)]
    return [*models, "--device", "cpu", "--no_cache"]
