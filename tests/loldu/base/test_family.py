"""A new model family is one class and one entry of `FAMILIES`: a made-up one is trained here."""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    ConfigMixin,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    SchedulerMixin,
)
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate, mse_loss

import loldu
from loldu import load_concept
from loldu.base.config import BaseModelConfig
from loldu.base.draw import sample_images
from loldu.base.families import FAMILIES, family_of
from loldu.base.family import Conditioning, Family, NoiseSchedule
from loldu.base.open import load_pipeline, weights_digest
from loldu.errors import LoLDUError
from trainer.__main__ import run
from trainer.methods.method import Trained
from trainer.options.config import Config
from trainer.training.cache import build_cache
from trainer.training.instances import find_instances
from trainer.training.objective import Denoiser, DreamBooth, Objective

WIDTH, FACTOR = 8, 4
PRODUCT = ("loldu", "eval", "trainer", "webui")


class Transformer(ModelMixin, ConfigMixin, PeftAdapterMixin):
    """Predict a velocity for every pixel of the latents, from pixel, time and prompt."""

    config_name = "config.json"

    @register_to_config
    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.to_q = nn.Linear(3, width)
        self.to_k = nn.Linear(width, width)
        self.to_pixels = nn.Linear(width, 3)

    def forward(self, latents: Tensor, time: Tensor, text: Tensor) -> Tensor:
        pixels = self.to_q(latents.movedim(1, -1))
        shift = (self.to_k(text).mean(dim=1) + time[:, None])[:, None, None]
        return self.to_pixels(torch.tanh(pixels + shift)).movedim(-1, 1)


class ToyPipeline(DiffusionPipeline):
    def __init__(
        self,
        transformer: ModelMixin,
        text_encoder: nn.Module,
        vae: nn.Module,
        scheduler: SchedulerMixin,
    ) -> None:
        super().__init__()
        self.register_modules(
            transformer=transformer, text_encoder=text_encoder, vae=vae, scheduler=scheduler
        )


class FlowMatching(NoiseSchedule):
    """x_t = (1 - t) x + t noise, and the network predicts noise - x."""

    def draw_timesteps(
        self,
        rng: np.random.Generator,
        count: int,
        latent_shape: tuple[int, ...],
        span: tuple[float, float] = (0.0, 1.0),
    ) -> np.ndarray:
        return np.float32(span[0]) + np.float32(span[1] - span[0]) * rng.random(count, np.float32)

    def noise_and_target(
        self, latents: Tensor, noise: Tensor, timesteps: Tensor
    ) -> tuple[Tensor, Tensor]:
        return torch.lerp(latents, noise, timesteps[:, None, None, None]), noise - latents


class Toy(Family):
    name = "the toy"
    pipeline_class = ToyPipeline
    network = "transformer"
    target_modules = ("to_q", "to_k")
    lora_prefixes: Mapping[str, str] = {"transformer": "lora_transformer"}

    def matches(self, index: Mapping[str, Any]) -> bool:
        return index["_class_name"] == "ToyPipeline"

    def open(
        self, base: BaseModelConfig, *, torch_dtype: torch.dtype, safety_checker: bool
    ) -> ToyPipeline:
        torch.manual_seed(0)
        network = Transformer().to(torch_dtype)
        return ToyPipeline(
            network, nn.Embedding(64, WIDTH), nn.Conv2d(3, 3, 1), FlowMatchEulerDiscreteScheduler()
        )

    def encode_text(self, pipeline: Any, prompts: Sequence[str]) -> Conditioning:  # noqa: ANN401
        ids = torch.tensor([[sum(map(ord, text)) % 64, len(text) % 64] for text in prompts])
        with torch.no_grad():
            return {"ids": ids, "text": pipeline.text_encoder(ids)}

    def encode_again(
        self, text_encoders: Mapping[str, nn.Module], conditioning: Conditioning
    ) -> Conditioning:
        return conditioning | {"text": text_encoders["text_encoder"](conditioning["ids"])}

    def encode_pictures(self, pipeline: DiffusionPipeline, pixels: Tensor) -> tuple[Tensor, Tensor]:
        small = avg_pool2d(pixels, FACTOR)
        return small, torch.zeros_like(small)

    def noise_schedule(self, pipeline: DiffusionPipeline) -> NoiseSchedule:
        return FlowMatching()

    def predict(
        self, network: nn.Module, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning
    ) -> Tensor:
        return network(noisy, timesteps, conditioning["text"]).float()

    @torch.no_grad()
    def draw(
        self,
        pipeline: Any,  # noqa: ANN401
        prompts: list[str],
        generators: list[torch.Generator],
        *,
        negative_prompts: list[str] | None,
        num_inference_steps: int,
        guidance_scale: float,
        resolution: int | None,
    ) -> list[Image.Image]:
        shape = self.latent_shape(pipeline, resolution or 16)
        latents = torch.stack([torch.randn(shape, generator=each) for each in generators])
        text = self.encode_text(pipeline, prompts)
        for step in range(num_inference_steps, 0, -1):
            time = torch.full((len(prompts),), step / num_inference_steps)
            latents -= self.predict(pipeline.transformer, latents, time, text) / num_inference_steps
        pixels = interpolate(latents, scale_factor=FACTOR).clamp(-1, 1).movedim(1, -1)
        return [Image.fromarray(((each + 1) * 127.5).byte().numpy()) for each in pixels]

    def latent_shape(self, pipeline: DiffusionPipeline, resolution: int) -> tuple[int, ...]:
        return 3, resolution // FACTOR, resolution // FACTOR


@pytest.fixture
def toy_folder(tmp_path: Path) -> Iterator[Path]:
    """Return a base of the toy family, which is registered during one test."""
    folder = tmp_path / "toy"
    folder.mkdir()
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    FAMILIES.append(Toy())
    yield folder
    FAMILIES.pop()


def test_a_folder_is_opened_by_its_own_family(toy_folder: Path, base_folder: Path) -> None:
    toy, plain = load_pipeline(str(toy_folder)), load_pipeline(str(base_folder))
    assert isinstance(toy, ToyPipeline)
    assert (family_of(toy).name, family_of(plain).network) == ("the toy", "unet")
    assert not any(p.requires_grad for p in toy.transformer.parameters())
    assert weights_digest(toy) != weights_digest(plain)


def test_without_its_family_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    with pytest.raises(LoLDUError, match="is a ToyPipeline, but only Stable Diffusion"):
        load_pipeline(str(tmp_path))


def test_the_trainer_uses_the_objective_of_the_family(
    toy_folder: Path, make_config: Callable[..., Config]
) -> None:
    config = make_config("--pretrained_model_name_or_path", str(toy_folder))
    pipeline = load_pipeline(config.base)
    cache = build_cache(pipeline, find_instances(config.instance), [], config.instance, seed=0)
    concept = DreamBooth(pipeline, cache, config)
    batch = concept.draw(0)
    with torch.no_grad():
        objective = Objective([concept], Trained(("default",), {}), config)
        (losses,) = objective.losses(Denoiser(pipeline), [batch])
        clean, time = cache.mean[batch.views], batch.timesteps
        noisy = (1 - time)[:, None, None, None] * clean + time[:, None, None, None] * batch.noise
        text = cache.conditioning["text"][cache.prompt_of_view[batch.views]]
        expected = mse_loss(pipeline.transformer(noisy, time, text), batch.noise - clean)
    torch.testing.assert_close(losses.total, expected)


def test_a_text_encoder_that_is_trained_reads_the_prompts_itself(toy_folder: Path) -> None:
    pipeline = load_pipeline(str(toy_folder))
    text = family_of(pipeline).encode_text(pipeline, ["sks"])
    denoiser = Denoiser(pipeline, trains_text=True)
    inputs = torch.ones(1, 3, 4, 4), torch.ones(1)
    before = denoiser(*inputs, text)
    pipeline.text_encoder.weight.data.add_(1)
    assert torch.equal(denoiser(*inputs, text), before)
    assert not torch.equal(denoiser(*inputs, text, live=True), before)


def test_a_new_family_is_trained_drawn_and_saved(
    toy_folder: Path, flags: list[str], tmp_path: Path
) -> None:
    base = ["--pretrained_model_name_or_path", str(toy_folder), "--max_train_steps", "2"]
    drawn = ["--validation_prompt", "a sks toy", "--validation_steps", "2"]
    assert run([*flags, *base, *drawn]) == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 2
    assert (tmp_path / "run" / "validation" / "000002.png").is_file()
    pipeline = load_pipeline(str(toy_folder))
    before = sample_images(pipeline, ["a sks toy"], [0], progress=False)
    load_concept(pipeline, tmp_path / "run" / "concept.safetensors")
    after = sample_images(pipeline, ["a sks toy"], [0], progress=False)
    assert before[0].tobytes() != after[0].tobytes()


def test_only_families_name_the_classes_of_a_pipeline() -> None:
    classes = {"StableDiffusionPipeline", "UNet2DConditionModel", "AutoencoderKL", "CLIPTextModel"}
    classes |= {"Flux2KleinPipeline", "Flux2Transformer2DModel", "AutoencoderKLFlux2"}
    root = Path(loldu.__file__).parent.parent
    files = [path for name in PRODUCT for path in (root / name).rglob("*.py")]
    assert len(files) > 100
    for path in files:
        if root / "loldu" / "base" not in path.parents:
            assert not named(path) & classes, path
        if path.relative_to(root).parts[0] != "loldu":
            found = re.search("sdxl|flux|StableDiffusion", path.read_text(), re.IGNORECASE)
            assert found is None, (path, found)


def named(path: Path) -> set[str]:
    """Return the names that the code of a module uses or imports, without words in strings."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.Attribute):
            found.add(node.attr)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.name for alias in node.names}
    return found
