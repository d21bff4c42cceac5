"""The recipe: its details, exact resume, and all of it at its smallest."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn

from pocket.corpus import make_corpus
from pocket.fitting import Losses, fit
from pocket.judge import to_pixels
from pocket.pretrain import TINY, pretrain
from pocket.render import render
from pocket.tokenizer import add_names, build_tokenizer
from pocket.vae import LATENT_CHANNELS, balance_latents, build_vae, haar
from pocket.world import INDIVIDUALS, random_scene


@pytest.fixture(scope="module")
def pixels() -> torch.Tensor:
    rng = random.Random(3)
    return to_pixels([render(random_scene(rng), rng) for _ in range(48)])


def test_tokenizer_knows_every_character_and_keeps_rare_tokens_whole() -> None:
    tokenizer = build_tokenizer(captions=2000)
    for text in ("Ünïcode ☃ 42!", "a photo of a sks toy", "zwx, dax; wug-blick"):
        ids = tokenizer(text).input_ids
        assert tokenizer.eos_token_id not in ids[1:-1]
    assert len(tokenizer("sks").input_ids) == 3
    assert tokenizer.decode(tokenizer("a ☃ toy").input_ids[1:-1]).strip() == "a ☃ toy"


def test_a_name_is_one_token_after_all_others() -> None:
    tokenizer = build_tokenizer(captions=2000)
    before = len(tokenizer)
    plain = tokenizer("a photo of a sks toy").input_ids
    add_names(tokenizer)
    assert tokenizer("a photo of a sks toy").input_ids == plain
    for i, name in enumerate(INDIVIDUALS):
        assert tokenizer(f"{name.capitalize()} toy").input_ids[1] == before + i
    assert max(tokenizer(f"{next(iter(INDIVIDUALS))}s").input_ids) < before


def test_the_vae_starts_as_the_haar_pca_code(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    vae = build_vae(pixels).eval()
    patches = haar(haar(haar(pixels))).permute(0, 2, 3, 1).reshape(-1, 192)
    centred = (patches - patches.mean(0)).double()
    components = torch.linalg.svd(centred, full_matrices=False)[2][:LATENT_CHANNELS]
    code = centred @ components.T
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mean.permute(0, 2, 3, 1).reshape(len(code), -1)
    for channel in range(LATENT_CHANNELS):
        both = torch.stack([code[:, channel], latents[:, channel].double()])
        assert torch.corrcoef(both)[0, 1].abs() > 0.9, channel


def test_balancing_the_latents_changes_no_picture(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    vae = build_vae(pixels).eval()
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels[:8]).latent_dist.mean).sample
        balance_latents(vae, pixels)
        latents = vae.encode(pixels).latent_dist.mean
        after = vae.decode(latents[:8]).sample
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    assert (latents * vae.config.scaling_factor).std().item() == pytest.approx(1, abs=0.02)


def test_a_stopped_fit_resumes_exactly(tmp_path: Path) -> None:
    def fitted(build: Path, stops: list[int]) -> torch.Tensor:
        for limit in [*stops, 6]:
            torch.manual_seed(0)
            module = nn.Linear(3, 1)
            losses = losses_of(module, limit)
            try:
                groups: list[dict[str, object]] = [{"params": list(module.parameters()), "lr": 0.1}]
                fit("x", module, groups, losses, build=build, steps=6, checkpoint_every=2)
            except KeyboardInterrupt:
                continue
        return module.weight.detach()

    def losses_of(module: nn.Module, limit: int) -> Callable[[int], Losses]:
        def losses_at(step: int) -> Losses:
            if step == limit:
                raise KeyboardInterrupt
            x = torch.randn(4, 3)
            return {"loss": (module(x) - x.sum(1, keepdim=True)).square().mean()}

        return losses_at

    whole, stopped = fitted(tmp_path / "whole", []), fitted(tmp_path / "stopped", [3, 5])
    assert torch.equal(whole, stopped)


def test_a_corpus_is_rendered_once(tmp_path: Path) -> None:
    first = make_corpus(tmp_path, "train", 6, seed=1)
    stamp = (tmp_path / "train-6.npy").stat().st_mtime_ns
    again = make_corpus(tmp_path, "train", 6, seed=1)
    assert (tmp_path / "train-6.npy").stat().st_mtime_ns == stamp
    assert again.scenes == first.scenes
    assert torch.equal(again.pixels(slice(0, 6)), first.pixels(slice(0, 6)))


@pytest.mark.slow
def test_the_whole_recipe_at_its_smallest_writes_an_ordinary_pipeline(tmp_path: Path) -> None:
    pretrain(tmp_path / "out", tmp_path / "build", TINY)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "base")
    assert pipeline("a toy", num_inference_steps=2).images[0].size == (64, 64)
    record = json.loads((tmp_path / "out" / "base.json").read_text())
    assert set(record["judgement"]["ratio"]) <= set(record["judgement"]["samples"])
    assert set(record["individuals"]) == {"named", "unnamed"}
