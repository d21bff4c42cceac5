"""FLUX.2 klein: opening, prompts, latents, time, drawing and routing, beside diffusers itself."""

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from PIL import Image
from safetensors.torch import save_file

from loldu import ConceptError, LoLDUConfig, load_concept, route_concepts, save_concept
from loldu.base.config import BaseModelConfig
from loldu.base.draw import sample_images
from loldu.base.families import family_of
from loldu.base.flow_schedule import FlowSchedule
from loldu.base.flux2_klein import STATES, Flux2Klein
from loldu.base.open import load_pipeline
from loldu.concept.format import Concept, ConceptLayer, write_concept
from loldu.errors import LoLDUError

Change = Callable[..., str]
PARTS = ("transformer", "vae", "text_encoder")
HOW: dict[str, Any] = {"num_inference_steps": 2, "resolution": 16}
DIFFUSERS: dict[str, Any] = {"num_inference_steps": 2, "height": 16, "width": 16}


@pytest.fixture
def klein(klein_folder: Path) -> Flux2KleinPipeline:
    return load_pipeline(str(klein_folder))


@pytest.fixture(scope="module")
def plain(klein_folder: Path) -> Flux2KleinPipeline:
    """The pipeline as diffusers alone opens it."""
    pipeline = Flux2KleinPipeline.from_pretrained(klein_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def changed(klein_folder: Path, tmp_path: Path) -> Change:
    """Return a function that copies the base with other values in one of its JSON files."""

    def change(file: str, **values: Any) -> str:  # noqa: ANN401
        folder = shutil.copytree(klein_folder, tmp_path / "changed")
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return str(folder)

    return change


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, np.int16) for image in images])


def adapt(pipeline: Any, **config: Any) -> None:  # noqa: ANN401
    targets = [*family_of(pipeline).network_targets(pipeline)]
    options = {"r": 4, "alpha": 60.0, "init_weights": False, "target_modules": targets, **config}
    pipeline.transformer.add_adapter(LoLDUConfig(**options))


def test_a_folder_is_opened_frozen_with_its_vae_in_float32(klein_folder: Path) -> None:
    pipeline = load_pipeline(str(klein_folder), torch_dtype=torch.bfloat16)
    assert family_of(pipeline).name == "FLUX.2 klein"
    dtypes = {part: getattr(pipeline, part).dtype for part in PARTS}
    assert dtypes == {**dict.fromkeys(PARTS, torch.bfloat16), "vae": torch.float32}
    assert not any(p.requires_grad for part in PARTS for p in getattr(pipeline, part).parameters())
    other = load_pipeline(BaseModelConfig(str(klein_folder), vae=str(klein_folder / "vae")))
    assert family_of(other).native_resolution(other) == 256
    assert family_of(other).resolution_of_folder(klein_folder) == 256


def test_what_cannot_be_trained_is_refused_in_a_sentence(
    changed: Change, klein_folder: Path, tmp_path: Path
) -> None:
    for options in ({"clip_skip": 1}, {"prompt_chunks": 3}, {"prediction_type": "epsilon"}):
        with pytest.raises(LoLDUError, match=rf"--{next(iter(options))} is not for FLUX.2 klein"):
            load_pipeline(BaseModelConfig(str(klein_folder), **options))
    file = tmp_path / "flux2.safetensors"
    save_file({"model.diffusion_model.single_stream_modulation.lin.weight": torch.ones(1)}, file)
    with pytest.raises(LoLDUError, match=r"transformer of a FLUX.2 alone, .*; give the diffusers"):
        load_pipeline(str(file))
    folder = changed("scheduler/scheduler_config.json")
    shutil.rmtree(Path(folder) / "text_encoder")
    with pytest.raises(LoLDUError, match="lacks its folder text_encoder; download it again"):
        load_pipeline(folder)
    index = json.loads((klein_folder / "model_index.json").read_text())
    index["text_encoder"] = ["transformers", "Mistral3ForConditionalGeneration"]
    (Path(folder) / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(LoLDUError, match=r"is a Flux2KleinPipeline, but only .* FLUX.2 klein can"):
        load_pipeline(folder)


def test_prompts_are_encoded_as_the_pipeline_encodes_them(
    klein: Flux2KleinPipeline, plain: Flux2KleinPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    family, prompts = family_of(klein), ["a sks toy", ""]
    found = family.encode_text(klein, prompts)
    with torch.no_grad():
        expected, _ = plain.encode_prompt(prompts)
    assert found.keys() == {STATES}
    assert found[STATES].shape == (2, 512, 24)
    torch.testing.assert_close(found[STATES], expected)
    with caplog.at_level(logging.WARNING):
        family.encode_text(klein, ["b" * 600])
    assert "has 600 tokens, and the base reads 506 of a prompt" in caplog.text
    with pytest.raises(LoLDUError, match=r"The text encoder of FLUX.2 klein is not trained here"):
        family.encode_again({"text_encoder": klein.text_encoder}, found)


def test_latents_are_the_normalized_patches_of_the_pipeline(
    klein: Flux2KleinPipeline, plain: Flux2KleinPipeline
) -> None:
    family, picture = family_of(klein), torch.rand(2, 3, 16, 24) * 2 - 1
    mean, std = family.encode_pictures(klein, picture)
    with torch.no_grad():
        expected = plain._encode_vae_image(picture, generator=None)
    assert mean.shape == (2, 16, 4, 6)
    torch.testing.assert_close(mean, expected)
    assert not std.any()
    assert family.latent_shape(klein, 16) == (16, 4, 4)
    with pytest.raises(LoLDUError, match=r"18 x 16 pixels do not fit .* multiples of 4; give such"):
        family.encode_pictures(klein, torch.zeros(1, 3, 16, 18))


def test_time_is_logit_normal_with_the_shift_of_the_resolution(klein: Flux2KleinPipeline) -> None:
    schedule = FlowSchedule(klein.scheduler, "the base")
    for side, mu in ((16, 0.5), (64, 1.15), (32, 0.5 + 0.65 * 768 / 3840)):
        shape = (16, side, side)
        assert schedule.shift(shape) == pytest.approx(mu)
        drawn = schedule.draw_timesteps(np.random.default_rng(0), 4000, shape)
        logits = np.log(drawn.astype(float) / (1 - drawn))
        assert drawn.dtype == np.float32
        assert logits.mean() == pytest.approx(mu, abs=0.05)
        assert logits.std() == pytest.approx(1, abs=0.03)
        # Shifted after the draw, as samplers shift: e^mu t / (1 + (e^mu - 1) t).
        unshifted = 1 / (1 + np.exp(mu - logits))
        shifted = math.exp(mu) * unshifted / (1 + (math.exp(mu) - 1) * unshifted)
        np.testing.assert_allclose(shifted, drawn, rtol=1e-5)
    part = schedule.draw_timesteps(np.random.default_rng(0), 4000, (16, 16, 16), (0.6, 0.9))
    assert part.min() >= 0.6
    assert part.max() <= 0.9
    inside = drawn_inside(schedule, 0.6, 0.9)
    assert np.mean(part < 0.75) == pytest.approx(np.mean(inside < 0.75), abs=0.03)
    fixed = FlowSchedule(type(klein.scheduler)(shift=3.0), "the base")
    assert fixed.shift((16, 64, 64)) == pytest.approx(math.log(3))
    with pytest.raises(LoLDUError, match="cannot be trained with --snr_gamma"):
        schedule.min_snr_weights(torch.tensor([0.5]), 5.0)


def drawn_inside(schedule: FlowSchedule, low: float, high: float) -> np.ndarray:
    """Return the draws of the whole schedule that are inside a span."""
    drawn = schedule.draw_timesteps(np.random.default_rng(1), 20_000, (16, 16, 16))
    return drawn[(drawn > low) & (drawn < high)]


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_pictures_are_those_of_the_pipeline_in_any_batch(
    guidance: float, klein: Flux2KleinPipeline, plain: Flux2KleinPipeline
) -> None:
    prompts = ["a toy", "a sks toy"]
    together = sample_images(klein, prompts, [5, 6], guidance_scale=guidance, **HOW)
    for image, prompt, seed in zip(together, prompts, (5, 6), strict=True):
        theirs = plain(
            prompt=prompt,
            generator=torch.Generator().manual_seed(seed),
            guidance_scale=guidance,
            **DIFFUSERS,
        ).images
        assert np.abs(pixels([image]) - pixels(theirs)).max() <= 1
    assert np.abs(pixels([together[0]]) - pixels([together[1]])).max() > 5


def test_a_negative_prompt_is_what_guidance_leads_away_from(
    klein: Flux2KleinPipeline, plain: Flux2KleinPipeline
) -> None:
    how = {"guidance_scale": 4.0, **HOW}
    (found,) = sample_images(klein, ["a toy"], [5], negative_prompts=["red"], **how)
    with torch.no_grad():
        theirs = plain(
            prompt="a toy",
            negative_prompt_embeds=plain.encode_prompt("red")[0],
            generator=torch.Generator().manual_seed(5),
            guidance_scale=4.0,
            **DIFFUSERS,
        ).images
    assert np.abs(pixels([found]) - pixels(theirs)).max() <= 1
    (without,) = sample_images(klein, ["a toy"], [5], **how)
    assert without.tobytes() != found.tobytes()


def test_a_distilled_base_draws_without_guidance(changed: Change) -> None:
    pipeline = load_pipeline(changed("model_index.json", is_distilled=True))
    calls: list[object] = []
    pipeline.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    (one,) = sample_images(pipeline, ["a toy"], [5], guidance_scale=1.0, **HOW)
    assert len(calls) == 2
    (other,) = sample_images(pipeline, ["a toy"], [5], guidance_scale=7.5, **HOW)
    assert len(calls) == 4
    assert one.tobytes() == other.tobytes()
    with pytest.raises(LoLDUError, match="is distilled: it draws without guidance, so a negative"):
        sample_images(pipeline, ["a toy"], [5], negative_prompts=["red"], **HOW)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_a_concept_acts_where_its_word_is(
    guidance: float, klein: Flux2KleinPipeline, klein_folder: Path, tmp_path: Path
) -> None:
    prompts, how = ["a toy", "a sks toy"], {"guidance_scale": guidance, **HOW}
    before = sample_images(klein, prompts, [1, 2], **how)
    adapt(klein)
    metadata = {"token": "sks", "base": {"family": family_of(klein).name}}
    path = save_concept(klein, tmp_path / "toy.safetensors", metadata=metadata)
    always = sample_images(klein, prompts, [1, 2], **how)
    routed = load_pipeline(str(klein_folder))
    load_concept(routed, path)
    after = sample_images(routed, prompts, [1, 2], **how)
    assert after[0].tobytes() == before[0].tobytes()
    assert after[1].tobytes() != before[1].tobytes()
    (alone,) = sample_images(routed, prompts[1:], [2], **how)
    assert np.abs(pixels([alone]) - pixels([after[1]])).max() <= 1
    with torch.no_grad():
        states = routed.encode_prompt(prompts[1:])[0]
    generator = torch.Generator().manual_seed(2)
    (unread,) = routed(
        prompt_embeds=states, generator=generator, guidance_scale=guidance, **DIFFUSERS
    ).images  # embeddings have no words: the concept is on
    assert np.abs(pixels([unread]) - pixels([always[1]])).max() <= 1
    if guidance == 1.0:
        assert np.abs(pixels([always[1]]) - pixels([after[1]])).max() <= 1
        return
    # The unconditional pass is the base's, unless the routing says otherwise.
    assert always[1].tobytes() != after[1].tobytes()
    route_concepts(routed, {"default": "sks"}, guidance=1.0)
    (both,) = sample_images(routed, prompts[1:], [2], **how)
    assert np.abs(pixels([both]) - pixels([always[1]])).max() <= 1


def test_the_unconditional_pass_of_a_routed_call_is_the_base_s(
    klein: Flux2KleinPipeline, plain: Flux2KleinPipeline
) -> None:
    """The guided picture from two passes that are computed apart."""
    adapt(klein)
    route_concepts(klein, {"default": "sks"})
    seen: list[torch.Tensor] = []
    klein.transformer.register_forward_hook(lambda _, __, output: seen.append(output[0]))
    sample_images(klein, ["a sks toy"], [1], guidance_scale=4.0, **HOW | {"num_inference_steps": 1})
    noise = torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(1))
    family, time = family_of(klein), torch.ones(1)
    route_concepts(klein, None)
    for prediction, prompt, network in (
        (seen[0], "a sks toy", klein.transformer),
        (seen[1], "", plain.transformer),
    ):
        text = family.encode_text(klein, [prompt])
        with torch.no_grad():
            expected = family.predict(network, noise, time, text).flatten(2).transpose(1, 2)
        torch.testing.assert_close(prediction, expected)


def test_a_concept_of_another_family_is_refused_in_a_sentence(
    klein: Flux2KleinPipeline, base_folder: Path, tmp_path: Path
) -> None:
    other = load_pipeline(str(base_folder))
    other.unet.add_adapter(LoLDUConfig(r=2, init_weights=False))
    adapt(klein)
    for pipeline, target, part in ((other, klein, "unet"), (klein, other, "transformer")):
        name = family_of(pipeline).name
        path = tmp_path / f"{part}.safetensors"
        save_concept(pipeline, path, metadata={"base": {"family": name}})
        with pytest.raises(ConceptError, match=rf"another base model \({name}\): .* the {part}, w"):
            load_concept(target, path, "again")


def test_names_sizes_and_bytes_at_the_shapes_of_klein_4b(tmp_path: Path) -> None:
    """Docs state these numbers."""
    with torch.device("meta"):
        transformer = Flux2Transformer2DModel(
            num_layers=5,
            num_single_layers=20,
            num_attention_heads=24,
            joint_attention_dim=3 * 2560,
            guidance_embeds=False,
        )
    pipeline: Any = Flux2KleinPipeline.__new__(Flux2KleinPipeline)
    object.__setattr__(pipeline, "transformer", transformer)
    targets = Flux2Klein().network_targets(pipeline)
    adapted = {
        name: part
        for name, part in transformer.named_modules()
        if isinstance(part, torch.nn.Linear) and any(f".{name}".endswith(f".{t}") for t in targets)
    }
    assert len(adapted) == 5 * 8 + 20 * 2
    assert sum(p.numel() for p in transformer.parameters()) == 3_875_544_576
    lora = sum(32 * (y.in_features + y.out_features) for y in adapted.values())
    sizes = {}
    for r in (32, 128):
        layers = tuple(
            ConceptLayer(
                *("transformer", name, y.out_features, y.in_features, "partial", "bfloat16"),
                *(torch.ones(r), torch.arange(y.out_features)[-r:], torch.ones(3)),
            )
            for name, y in adapted.items()
        )
        config = {"transformer": {"r": r, "target_modules": [*targets]}}
        path = tmp_path / f"{r}.safetensors"
        write_concept(Concept("black-forest-labs/FLUX.2-klein-4B", config, layers, {}), path)
        sizes[r] = path.stat().st_size
    shapes = {(y.out_features, y.in_features) for y in adapted.values()}
    assert shapes == {(3072, 3072), (27648, 3072), (3072, 12288)}
    assert lora == 37_355_520
    assert {r: round(size / 1000) for r, size in sizes.items()} == {32: 23, 128: 69}
