"""SDXL: opening, prompts, framing, drawing and routing, against diffusers' own pipeline."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import EDMEulerScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from loldu import ConceptError, LoLDUConfig, load_concept, save_concept
from loldu.base.config import BaseModelConfig
from loldu.base.draw import sample_images
from loldu.base.families import family_of
from loldu.base.open import load_pipeline
from loldu.base.stable_diffusion_xl import POOLED, READ, STATES, TIME_IDS
from loldu.concept.lora_names import kohya_key, original_name
from loldu.errors import LoLDUError
from loldu.pictures.crop import Framing, framings
from tests.loldu.base.original_layout import save_xl_file, unet_weights

PROMPTS = ["a toy", "", "a red sks toy"]
PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")


@pytest.fixture
def xl(xl_folder: Path) -> StableDiffusionXLPipeline:
    return load_pipeline(str(xl_folder))


@pytest.fixture(scope="module")
def plain(xl_folder: Path) -> StableDiffusionXLPipeline:
    """The pipeline as diffusers alone opens it."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(xl_folder)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def changed(xl_folder: Path, tmp_path: Path) -> Callable[..., str]:
    """Return a function that copies the base with other values in one of its JSON files."""

    def change(file: str, **values: Any) -> str:  # noqa: ANN401
        folder = shutil.copytree(xl_folder, tmp_path / "changed")
        path = folder / file
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
        return str(folder)

    return change


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, np.int16) for image in images])


def test_a_folder_is_opened_frozen_with_its_vae_in_float32(xl_folder: Path) -> None:
    pipeline = load_pipeline(str(xl_folder), torch_dtype=torch.bfloat16)
    assert family_of(pipeline).name == "Stable Diffusion XL"
    dtypes = {part: getattr(pipeline, part).dtype for part in PARTS}
    assert dtypes == {**dict.fromkeys(PARTS, torch.bfloat16), "vae": torch.float32}
    parameters = [p for part in PARTS for p in getattr(pipeline, part).parameters()]
    assert not any(p.requires_grad for p in parameters)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_skip": 1}, "clip_skip 1 is for Stable Diffusion 1.x and 2.x: SDXL always reads"),
        ({"prompt_chunks": 3}, "--prompt_chunks is for Stable Diffusion 1.x and 2.x"),
    ],
)
def test_options_without_use_for_it_are_refused(
    options: dict[str, int], message: str, xl_folder: Path
) -> None:
    with pytest.raises(LoLDUError, match=message):
        load_pipeline(BaseModelConfig(str(xl_folder), **options))


def test_the_refiner_is_refused_in_a_sentence(changed: Callable[..., str], tmp_path: Path) -> None:
    with pytest.raises(LoLDUError, match=r"^The base is SDXL's refiner, .*; give the base"):
        load_pipeline(changed("model_index.json", text_encoder=[None, None]))
    file = tmp_path / "refiner.safetensors"
    save_file({"conditioner.embedders.0.model.text_projection": torch.zeros(2, 2)}, file)
    with pytest.raises(LoLDUError, match=r"refiner.safetensors is SDXL's refiner, which only"):
        load_pipeline(str(file))


def test_bases_of_other_kinds_are_refused(
    changed: Callable[..., str], xl: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    EDMEulerScheduler().save_pretrained(tmp_path / "edm")
    edm = json.loads((tmp_path / "edm" / "scheduler_config.json").read_text())
    folder = changed("scheduler/scheduler_config.json", **edm)
    index = Path(folder) / "model_index.json"
    named = json.loads(index.read_text()) | {"scheduler": ["diffusers", "EDMEulerScheduler"]}
    index.write_text(json.dumps(named))
    with pytest.raises(LoLDUError, match=r"the noise of EDM \(EDMEulerScheduler\)"):
        load_pipeline(folder)
    own = {**xl.unet.config}
    for changes, message in (
        ({"in_channels": 9}, "takes 9 channels, so it is for inpainting"),
        ({"projection_class_embeddings_input_dim": 12 + 5 * 8}, "does not read the original size"),
    ):
        xl.unet = UNet2DConditionModel.from_config({**own, **changes})
        xl.save_pretrained(tmp_path / message[:5])
        with pytest.raises(LoLDUError, match=message):
            load_pipeline(str(tmp_path / message[:5]))


def test_a_single_file_gives_the_pipeline_of_its_folder(
    xl: StableDiffusionXLPipeline, xl_folder: Path, tmp_path: Path
) -> None:
    path = save_xl_file(xl, tmp_path / "tiny.safetensors")
    config = BaseModelConfig(str(path), single_file_config=str(xl_folder))
    found = load_pipeline(config)
    for part in PARTS:
        expected, got = (getattr(each, part).state_dict() for each in (xl, found))
        assert got.keys() == expected.keys()
        assert all(torch.equal(weight, expected[name]) for name, weight in got.items())
    half = load_pipeline(config, torch_dtype=torch.bfloat16)
    dtypes = {part: getattr(half, part).dtype for part in PARTS}
    assert dtypes == {**dict.fromkeys(PARTS, torch.bfloat16), "vae": torch.float32}
    for part in PARTS:
        got, dtype = getattr(half, part).state_dict(), dtypes[part]
        for name, weight in getattr(xl, part).state_dict().items():
            assert torch.equal(got[name], weight.to(dtype)), name
    for prefix, message in (
        ("conditioner.embedders.1.", "is SDXL's refiner"),
        ("conditioner.embedders.0.", "lacks a text encoder; give a complete"),
        ("first_stage_model.", "contains no VAE; give one with --vae"),
    ):
        kept = {key: each for key, each in load_file(path).items() if not key.startswith(prefix)}
        save_file(kept, tmp_path / "part.safetensors")
        with pytest.raises(LoLDUError, match=message):
            load_pipeline(BaseModelConfig(str(tmp_path / "part.safetensors")))


def test_names_of_layers_are_those_of_the_original_release(xl: StableDiffusionXLPipeline) -> None:
    """The names of a LoRA's layers come from other code than those of the single file here."""
    names = {key.rpartition(".")[0] for key in unet_weights(xl.unet)}
    for name, module in xl.unet.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            key = kohya_key("lora_unet", "unet", name, xl.unet)
            assert key in {f"lora_unet_{each}".replace(".", "_") for each in names}, name
    # Known names of SDXL itself, whose blocks have two resnets.
    for ours, theirs in {
        "down_blocks.1.attentions.0.transformer_blocks.1.attn2.to_k": "input_blocks.4.1."
        "transformer_blocks.1.attn2.to_k",
        "down_blocks.2.attentions.1.proj_in": "input_blocks.8.1.proj_in",
        "down_blocks.0.downsamplers.0.conv": "input_blocks.3.0.op",
        "mid_block.attentions.0.proj_out": "middle_block.1.proj_out",
        "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
        "up_blocks.0.attentions.2.proj_in": "output_blocks.2.1.proj_in",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
        "up_blocks.1.resnets.0.time_emb_proj": "output_blocks.3.0.emb_layers.1",
    }.items():
        assert original_name(ours, 3) == theirs


def test_a_missing_part_is_named(xl_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(xl_folder, tmp_path / "base")
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(LoLDUError, match="lacks its folder text_encoder_2; download it again"):
        load_pipeline(str(folder))


def test_prompts_are_encoded_as_the_pipeline_encodes_them(
    xl: StableDiffusionXLPipeline, plain: StableDiffusionXLPipeline
) -> None:
    found = family_of(xl).encode_text(xl, PROMPTS)
    assert found[READ].tolist() == [True, False, True]
    for row, prompt in enumerate(PROMPTS):
        with torch.no_grad():
            states, zeros, pooled, zeros_pooled = plain.encode_prompt(prompt)
        expected = (states, pooled) if prompt else (zeros, zeros_pooled)
        torch.testing.assert_close(found[STATES][row], expected[0][0])
        torch.testing.assert_close(found[POOLED][row], expected[1][0])
    encoders = {name: getattr(xl, name) for name in ("text_encoder", "text_encoder_2")}
    again = family_of(xl).encode_again(encoders, found)
    for name in (STATES, POOLED):
        torch.testing.assert_close(again[name], found[name])


def test_without_forced_zeros_the_empty_prompt_is_read(
    changed: Callable[..., str], plain: StableDiffusionXLPipeline
) -> None:
    pipeline = load_pipeline(changed("model_index.json", force_zeros_for_empty_prompt=False))
    found = family_of(pipeline).encode_text(pipeline, [""])
    with torch.no_grad():
        torch.testing.assert_close(found[STATES], plain.encode_prompt("")[0])
    assert bool(found[STATES].any())


def test_pictures_are_those_of_the_pipeline_in_any_batch(
    xl: StableDiffusionXLPipeline, plain: StableDiffusionXLPipeline
) -> None:
    negatives, options = ["", "red", ""], {"num_inference_steps": 2}
    prompts = ["a toy", "a sks toy", "a red toy"]
    together = sample_images(xl, prompts, [5, 6, 7], negative_prompts=negatives, **options)
    for image, prompt, negative, seed in zip(together, prompts, negatives, (5, 6, 7), strict=True):
        theirs = plain(
            prompt,
            negative_prompt=negative or None,
            generator=torch.Generator().manual_seed(seed),
            guidance_scale=7.5,
            **options,
        ).images
        assert np.abs(pixels([image]) - pixels(theirs)).max() <= 1
    one, two = sample_images(xl, prompts[:2], [5, 5], **options)
    assert np.abs(pixels([one]) - pixels([two])).max() > 5


def test_latents_of_a_vae_with_statistics_of_its_channels(
    changed: Callable[..., str], xl: StableDiffusionXLPipeline
) -> None:
    mean, std = [0.5, -1.0, 0.25, 2.0], [2.0, 1.0, 0.5, 4.0]
    pipeline: Any = load_pipeline(changed("vae/config.json", latents_mean=mean, latents_std=std))
    picture = torch.rand(1, 3, 16, 16) * 2 - 1
    found = family_of(pipeline).encode_pictures(pipeline, picture)
    with torch.no_grad():
        posterior = xl.vae.encode(picture).latent_dist
    shift, deviation = (torch.tensor(x).view(4, 1, 1) for x in (mean, std))
    torch.testing.assert_close(found[0], (posterior.mean - shift) * 0.13025 / deviation)
    torch.testing.assert_close(found[1], posterior.std * 0.13025 / deviation)
    (drawn,) = sample_images(pipeline, ["a toy"], [1], num_inference_steps=2)
    theirs = pipeline(
        "a toy",
        generator=torch.Generator().manual_seed(1),
        guidance_scale=7.5,
        num_inference_steps=2,
    ).images
    assert np.abs(pixels([drawn]) - pixels(theirs)).max() <= 1


def test_time_ids_are_original_size_crop_and_size() -> None:
    rng = np.random.default_rng(0)
    size, shape = (300, 200), (64, 48)  # resized to 72 x 48: 8 pixels are spare
    middle = framings(size, shape, center_crop=True, random_flip=True, rng=rng)
    crops = framings(size, shape, center_crop=False, random_flip=True, rng=rng)
    xl: Any = family_of(StableDiffusionXLPipeline.__new__(StableDiffusionXLPipeline))
    ids = xl.describe_views([*middle, *crops, Framing.whole(64)])[TIME_IDS].tolist()
    assert ids[0] == ids[1] == [200, 300, 0, 4, 48, 64]
    assert ids[-1] == [64, 64, 0, 0, 64, 64]
    lefts = [row[3] for row in ids[2:-1]]
    assert len({*lefts}) > 2
    for plain_left, mirrored_left in zip(lefts[::2], lefts[1::2], strict=True):
        assert plain_left + mirrored_left == 8


def test_a_concept_acts_where_its_word_is(
    xl: StableDiffusionXLPipeline, xl_folder: Path, tmp_path: Path
) -> None:
    options = {"num_inference_steps": 2}
    before = sample_images(xl, ["a toy", "a sks toy"], [1, 2], **options)
    config = {"r": 8, "alpha": 8.0, "init_weights": False}
    xl.unet.add_adapter(LoLDUConfig(target_modules=["to_q", "to_k", "to_v", "to_out.0"], **config))
    for encoder, targets in family_of(xl).text_targets(xl).items():
        getattr(xl, encoder).add_adapter(LoLDUConfig(target_modules=[*targets], **config))
    metadata = {"token": "sks", "base": {"family": family_of(xl).name}}
    path = save_concept(xl, tmp_path / "toy.safetensors", metadata=metadata)
    routed = load_pipeline(str(xl_folder))
    load_concept(routed, path)
    after = sample_images(routed, ["a toy", "a sks toy"], [1, 2], **options)
    assert after[0].tobytes() == before[0].tobytes()
    assert after[1].tobytes() != before[1].tobytes()
    (second,) = routed(
        "a toy", prompt_2="a sks toy", generator=torch.Generator().manual_seed(1), **options
    ).images
    (without,) = routed("a toy", generator=torch.Generator().manual_seed(1), **options).images
    assert second.tobytes() != without.tobytes()


def test_a_concept_of_another_family_is_refused_in_a_sentence(
    xl: StableDiffusionXLPipeline, base_folder: Path, tmp_path: Path
) -> None:
    other = load_pipeline(str(base_folder))
    for pipeline, target in ((xl, other), (other, xl)):
        name = family_of(pipeline).name
        pipeline.unet.add_adapter(LoLDUConfig(r=2, init_weights=False))
        path = tmp_path / f"{len(name)}.safetensors"
        save_concept(pipeline, path, metadata={"base": {"family": name}})
        pipeline.unet.delete_adapters("default")
        with pytest.raises(ConceptError, match=rf"another base model \({name}\): it changes"):
            load_concept(target, path)
    xl.text_encoder_2.add_adapter(LoLDUConfig(r=2, target_modules=["q_proj"]))
    save_concept(xl, tmp_path / "text.safetensors")
    with pytest.raises(ConceptError, match="it changes the text_encoder_2, which this base does"):
        load_concept(other, tmp_path / "text.safetensors")
