"""The recipe: its details, exact resume, and all of it at its smallest."""

import copy
import json
import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from transformers import CLIPTextModel

from loldu.errors import LoLDUError
from pocket.checkpoint import open_checkpoint
from pocket.classifier import load_classifier
from pocket.clip import build_clip
from pocket.corpus import make_corpus
from pocket.denoiser import place_rare_tokens
from pocket.dino import build_vit, center_features
from pocket.discriminator import tell_apart
from pocket.fitting import Losses, fit
from pocket.judge import judge_closely, to_pixels
from pocket.muon import Muon, muon_groups, orthogonalized
from pocket.pretrain import TINY, latents_of, pretrain, pretrain_encoders
from pocket.render import render
from pocket.tokenizer import add_names, build_tokenizer
from pocket.vae import LATENT_CHANNELS, build_vae, haar, normalize_latents
from pocket.world import INDIVIDUALS, RARE_TOKENS, random_scene


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


def test_normalizing_the_latents_changes_no_picture(pixels: torch.Tensor) -> None:
    torch.manual_seed(0)
    vae = build_vae(pixels).eval()
    with torch.no_grad():
        before = vae.decode(vae.encode(pixels[:8]).latent_dist.mean).sample
        normalize_latents(vae, pixels)
        latents = vae.encode(pixels).latent_dist.mean
        after = vae.decode(latents[:8]).sample
    torch.testing.assert_close(after, before, atol=1e-3, rtol=1e-3)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-4
    torch.testing.assert_close(
        latents.std((0, 2, 3)), torch.ones(LATENT_CHANNELS), atol=1e-3, rtol=0
    )
    assert vae.config.scaling_factor == 1


@pytest.mark.parametrize("save_every_s", [600, 0])
@pytest.mark.parametrize("optimizer_class", [torch.optim.AdamW, Muon])
def test_a_stopped_fit_resumes_exactly(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    save_every_s: int,
    optimizer_class: type[torch.optim.AdamW],
) -> None:
    options = {"steps": 6, "checkpoint_every": 2, "optimizer_class": optimizer_class}
    monkeypatch.setattr("pocket.fitting._SAVE_EVERY_S", save_every_s)

    def fitted(build: Path, stops: list[int]) -> torch.Tensor:
        for limit in [*stops, 6]:
            torch.manual_seed(0)
            module = nn.Linear(3, 1)
            losses = losses_of(module, limit)
            try:
                fit("x", module, muon_groups(module, 0.1), losses, build=build, **options)
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


def test_muon_takes_the_steps_of_timm_s(monkeypatch: pytest.MonkeyPatch) -> None:
    muon = pytest.importorskip("timm.optim.muon")
    in_fp32 = partial(muon.zeropower_via_newtonschulz, dtype=torch.float32)
    monkeypatch.setattr(muon, "zeropower_via_newtonschulz", in_fp32)
    torch.manual_seed(0)
    ours = nn.Sequential(
        *(nn.Embedding(5, 6), nn.Linear(6, 9), nn.Linear(9, 16), nn.Unflatten(1, (4, 2, 2))),
        *(nn.Conv2d(4, 8, 2), nn.Flatten(0)),
    )
    theirs = copy.deepcopy(ours)
    (mine, others), (its, _) = (muon_groups(model, 0.01) for model in (ours, theirs))
    assert [p.shape for p in others["params"]] == [(5, 6), (9,), (16,), (8,)]
    optimizers = [
        Muon([mine], weight_decay=0.1),
        muon.Muon([its], weight_decay=0.1, nesterov=True),
    ]
    for words in torch.randint(5, (4, 1), generator=torch.Generator().manual_seed(1)):
        for model, optimizer in zip((ours, theirs), optimizers, strict=True):
            model(words).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("shape", [(6, 20), (20, 6)])
def test_orthogonalized(shape: tuple[int, int]) -> None:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    left, _, right = torch.linalg.svd(x, full_matrices=False)
    y = left.T @ orthogonalized(x) @ right.T  # its singular values
    assert 0.8 < y.diagonal().min() < y.diagonal().max() < 1.2
    torch.testing.assert_close(y, y.diagonal().diag(), atol=1e-4, rtol=0)


def test_a_fit_from_a_later_step_warms_up_again(
    tmp_path: Path,
) -> None:
    module, used = nn.Linear(3, 1), []

    def losses_at(step: int) -> Losses:
        used.append(step)
        return {"loss": module(torch.ones(3)).square().sum()}

    def schedule(progress: float) -> float:
        used.append(progress)
        return 1.0

    groups: list[dict[str, object]] = [{"params": list(module.parameters()), "lr": 0.1}]
    fit("x", module, groups, losses_at, build=tmp_path, steps=10, first_step=8, schedule=schedule)
    assert used == [0.8, 8, 0.9, 9]
    state = torch.load(tmp_path / "x-10" / "state.pt")
    assert state["optimizer"]["param_groups"][0]["lr"] == pytest.approx(0.1 * 2 / 100)


def test_the_log_of_a_resumed_fit_has_the_mean_of_its_own_steps(tmp_path: Path) -> None:
    module = nn.Linear(1, 1, bias=False)

    def losses_at(step: int) -> Losses:
        return {"loss": 0 * module.weight.sum() + step}

    groups: list[dict[str, object]] = [{"params": [module.weight], "lr": 0.1}]
    fit("x", module, groups, losses_at, build=tmp_path, steps=100, first_step=98)
    assert json.loads((tmp_path / "x-100" / "log.jsonl").read_text())["loss"] == 98.5


def test_an_interrupted_rendering_resumes_exactly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocket.corpus._CHUNK", 3)
    whole = make_corpus(tmp_path / "whole", "two", 8, seed=1)
    make_corpus(tmp_path / "stopped", "two", 8, seed=1)
    texts, pictures = (tmp_path / "stopped" / f"two-8.{end}" for end in ("jsonl", "npy"))
    lines = texts.read_text().splitlines(keepends=True)
    texts.write_text(lines[0] + lines[1][:-20])  # killed while it wrote the second chunk
    stored = np.load(pictures, mmap_mode="r+")
    stored[3:] = 0
    stored.flush()
    again = make_corpus(tmp_path / "stopped", "two", 8, seed=1)
    assert (again.scenes, again.captions) == (whole.scenes, whole.captions)
    assert np.array_equal(again.pictures, whole.pictures)


def test_interrupted_latents_resume_exactly(tmp_path: Path, pixels: torch.Tensor) -> None:
    vae = build_vae(pixels).eval()
    corpus = make_corpus(tmp_path, "train", 100, seed=1)
    whole = latents_of(vae, corpus, tmp_path, "train")
    file = tmp_path / "train-100.f16"
    file.write_bytes(file.read_bytes()[: 70 * 2 * whole[0].numel()])
    assert torch.equal(latents_of(vae, corpus, tmp_path, "train"), whole)


def test_rare_tokens_lie_among_the_names_but_near_none() -> None:
    tokenizer = build_tokenizer(captions=2000)
    add_names(tokenizer)
    torch.manual_seed(1)
    text_encoder = CLIPTextModel(build_clip(tokenizer).config.text_config)
    before = text_encoder.get_input_embeddings().weight.detach().clone()
    place_rare_tokens(text_encoder, tokenizer)
    after = text_encoder.get_input_embeddings().weight
    rare = [tokenizer(token).input_ids[1] for token in RARE_TOKENS]
    names = [tokenizer(name).input_ids[1] for name in INDIVIDUALS]
    changed = (after != before).any(1).nonzero().flatten().tolist()
    assert sorted(changed) == sorted(rare)
    distances = torch.cdist(after[rare], after[names])
    assert distances.min() > 0.3 * torch.pdist(after[names]).mean()


def test_a_network_distinguishes_other_pictures_but_not_equal_ones(
    pixels: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocket.discriminator._BATCH", 16)
    small = pixels[:, :, ::2, ::2]
    assert tell_apart(small, 0.4 * small + 0.6, max_epochs=6)["accuracy"] > 0.8
    assert tell_apart(small, small, max_epochs=1) == {"accuracy": 0.5, "epoch": 1}


def test_a_corpus_is_rendered_once(tmp_path: Path) -> None:
    first = make_corpus(tmp_path, "train", 6, seed=1)
    stamp = (tmp_path / "train-6.npy").stat().st_mtime_ns
    again = make_corpus(tmp_path, "train", 6, seed=1)
    assert (tmp_path / "train-6.npy").stat().st_mtime_ns == stamp
    assert again.scenes == first.scenes
    assert torch.equal(again.pixels(slice(0, 6)), first.pixels(slice(0, 6)))


@pytest.mark.slow
def test_the_whole_recipe_at_its_smallest_writes_an_ordinary_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocket.judge.NUM_INFERENCE_STEPS", 2)
    pretrain(tmp_path / "out", tmp_path / "build", TINY)
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "out" / "base")
    assert pipeline("a toy", num_inference_steps=2).images[0].size == (64, 64)
    record = json.loads((tmp_path / "out" / "base.json").read_text())
    assert set(record["judgement"]["ratio"]) <= set(record["judgement"]["samples"])
    assert set(record["individuals"]) == {"named", "unnamed"}

    checkpoint = next((tmp_path / "build").rglob("checkpoint"))
    assert json.loads((checkpoint / "progress.json").read_text()) == {"pictures": 20}
    settings = replace(TINY, denoiser=replace(TINY.denoiser, steps=3))
    pretrain(tmp_path / "more", tmp_path / "build", settings, tmp_path / "out", checkpoint)
    kept, more = (tmp_path / folder / "encoders" for folder in ("out", "more"))
    for file in kept.rglob("*.safetensors"):
        assert file.read_bytes() == (more / file.relative_to(kept)).read_bytes()
    before = {file: file.read_bytes() for file in (tmp_path / "more").rglob("*.safetensors")}
    pretrain_encoders(tmp_path / "more", tmp_path / "build", replace(TINY, dino_steps=3), ["dino"])
    changed = [file.parent.name for file, old in before.items() if file.read_bytes() != old]
    assert changed == ["dino"]
    log = next((tmp_path / "build").rglob("denoiser-3/log.jsonl")).read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [3]

    classifier = load_classifier(more / "attributes.safetensors")
    one = make_corpus(tmp_path, "judged", 9, seed=6)
    report = judge_closely(pipeline, classifier, one, make_corpus(tmp_path, "judged_two", 4, 7))
    assert report["two_things"]["renders"]["relation"] in (0, 0.25, 0.5, 0.75, 1)
    assert 0 < report["edges"]["ratio"] < 3
    assert 0 <= report["told_apart"]["accuracy"] <= 1


def test_centered_features_have_the_mean_zero_and_the_same_differences(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path, "pairs", 6, seed=3)
    vit = build_vit(patch_size=8).eval()
    with torch.no_grad():
        before = vit(pixel_values=corpus.pixels(slice(0, 6))).last_hidden_state[:, 0]
        center_features(vit, corpus)
        after = vit(pixel_values=corpus.pixels(slice(0, 6))).last_hidden_state[:, 0]
    assert before.mean(0).abs().max() > 0.01
    torch.testing.assert_close(after.mean(0), torch.zeros(before.shape[1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(after - after[:1], before - before[:1], atol=1e-5, rtol=0)


def test_only_a_checkpoint_is_a_start(tmp_path: Path) -> None:
    with pytest.raises(LoLDUError, match=r"has no progress\.json"):
        open_checkpoint(tmp_path, build_tokenizer(captions=100), 64)


def test_encoders_need_a_finished_base(tmp_path: Path) -> None:
    with pytest.raises(LoLDUError, match="has no base"):
        pretrain_encoders(tmp_path, tmp_path / "build", TINY)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("role", ["keep", "start"])
def test_a_wrong_folder_is_refused_before_anything_is_rendered(role: str, tmp_path: Path) -> None:
    with pytest.raises(LoLDUError, match="nowhere has no"):
        pretrain(tmp_path / "out", tmp_path / "build", TINY, **{role: tmp_path / "nowhere"})
    assert not list(tmp_path.iterdir())
