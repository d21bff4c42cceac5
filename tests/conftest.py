"""Tiny random models as the folders that people pass, and a short run on them."""

import json
import os
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import (
    AutoencoderKL,
    AutoencoderKLFlux2,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Qwen2Tokenizer,
    Qwen3Config,
    Qwen3ForCausalLM,
    ViTConfig,
    ViTModel,
)

from loldu.base.open import load_pipeline
from trainer.options.config import Config
from trainer.options.preset import parse

RESOLUTION = 16
os.environ.setdefault("OMP_NUM_THREADS", "1")  # also of processes that tests start


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests in a browser: they take longest, so they must not be the last ones."""
    items.sort(key=lambda item: "browser" not in getattr(item, "fixturenames", ()))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_accelerator() -> None:
    """Reset accelerate, which keeps its precision as long as the process lives."""
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = string.ascii_lowercase + string.digits
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=16)


@pytest.fixture(scope="session")
def base_folder(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    # The libraries' annotations are narrower than what they take, hence the dicts.
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vae: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
    }
    unet: dict[str, Any] = {
        "sample_size": RESOLUTION // 2,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    parts: dict[str, Any] = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(**text)),
        "vae": AutoencoderKL(**vae),
        "unet": UNet2DConditionModel(**unet),
        "tokenizer": tokenizer,
        "scheduler": DDIMScheduler(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            clip_sample=False,
            set_alpha_to_one=False,
            steps_offset=1,
        ),
        "safety_checker": None,
        "feature_extractor": None,
    }
    pipeline = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    folder = tmp_path_factory.mktemp("base")
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def xl_folder(tokenizer: CLIPTokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SDXL in miniature: every class and every switch of its configs, in a few thousand weights."""
    torch.manual_seed(2)
    folder = tmp_path_factory.mktemp("xl")
    tokenizer.save_pretrained(folder / "second")
    second = CLIPTokenizer.from_pretrained(folder / "second", pad_token="9")  # as SDXL's pads by !
    text: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 16,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    vae: dict[str, Any] = {
        "block_out_channels": (8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
        "scaling_factor": 0.13025,
    }
    unet: dict[str, Any] = {
        "sample_size": RESOLUTION // 2,
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "layers_per_block": 1,
        "transformer_layers_per_block": (1, 2),
        "use_linear_projection": True,
        "cross_attention_dim": 16 + 24,
        "attention_head_dim": (2, 4),
        "norm_num_groups": 4,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 12 + 6 * 8,
    }
    parts: dict[str, Any] = {
        "text_encoder": CLIPTextModel(CLIPTextConfig(hidden_size=16, **text)),
        "text_encoder_2": CLIPTextModelWithProjection(
            CLIPTextConfig(hidden_size=24, projection_dim=12, hidden_act="gelu", **text)
        ),
        "vae": AutoencoderKL(**vae),
        "unet": UNet2DConditionModel(**unet),
        "tokenizer": tokenizer,
        "tokenizer_2": second,
        "scheduler": EulerDiscreteScheduler(
            beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1
        ),
    }
    StableDiffusionXLPipeline(**parts, add_watermarker=False).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def klein_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """FLUX.2 klein in miniature; every byte of a prompt is a token, and Qwen3 has 28 layers."""
    torch.manual_seed(4)
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens = [*sorted(ByteLevel.alphabet()), *marks]
    tokenizer = Qwen2Tokenizer({token: i for i, token in enumerate(tokens)}, [])
    tokenizer.add_special_tokens({"additional_special_tokens": marks[1:]})
    tokenizer.chat_template = (
        "{% for each in messages %}<|im_start|>{{ each.role }}\n{{ each.content }}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    text = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=28,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    transformer = Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=3 * 8,
        timestep_guidance_channels=8,
        axes_dims_rope=(2, 2, 2, 2),
        guidance_embeds=False,
    )
    parts: dict[str, Any] = {
        "text_encoder": Qwen3ForCausalLM(text),
        "tokenizer": tokenizer,
        "vae": vae,
        "transformer": transformer,
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }
    folder = tmp_path_factory.mktemp("klein")
    Flux2KleinPipeline(**parts).save_pretrained(folder)
    return folder


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


@pytest.fixture
def pipeline(base_folder: Path) -> StableDiffusionPipeline:
    return load_pipeline(str(base_folder))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Three pictures of one colour field."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in "cab":
        noise = rng.integers(0, 60, (24, 20, 3), dtype=np.uint8)
        Image.fromarray(noise + np.array([150, 20, 20], np.uint8)).save(folder / f"{name}.png")
    return folder


@pytest.fixture
def flags(base_folder: Path, pictures: Path, tmp_path: Path) -> list[str]:
    """Return the command line of a short run; tests append to it."""
    preset = tmp_path / "short.toml"
    preset.write_text("rank = 4\n")  # typed, it would be refused with methods without a rank
    return [
        *("--preset", str(preset)),
        *("--pretrained_model_name_or_path", str(base_folder)),
        *("--instance_data_dir", str(pictures)),
        *("--instance_prompt", "a photo of sks toy"),
        *("--output_dir", str(tmp_path / "run")),
        *("--resolution", str(RESOLUTION)),
        *("--max_train_steps", "4", "--train_batch_size", "2"),
        *("--learning_rate", "1e-2", "--logging_steps", "1", "--num_inference_steps", "2"),
    ]


@pytest.fixture
def make_config(flags: list[str]) -> Callable[..., Config]:
    """Return a function that parses the short run's flags and additional ones."""
    return lambda *more: parse([*flags, *more])


@pytest.fixture
def predict() -> Callable[[StableDiffusionPipeline], torch.Tensor]:
    """Return a function that predicts with a pipeline's UNet on two fixed rows of noise."""

    def predict(pipeline: StableDiffusionPipeline) -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(2, 4, 8, 8, generator=generator)
        states = torch.randn(2, 16, 16, generator=generator)
        with torch.no_grad():
            return pipeline.unet(latents, torch.tensor([10, 500]), states).sample

    return predict
