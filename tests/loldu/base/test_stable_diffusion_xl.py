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
from diffusers.loaders.lora_conversion_utils import _maybe_map_sgm_blocks_to_diffusers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from loldu import (
    ConceptError,
    LoLDUConfig,
    load_concept,
    route_concepts,
    save_concept,
    set_strength,
)
from loldu.adapter.components import text_layers
from loldu.base.config import BaseModelConfig
from loldu.base.draw import sample_images
from loldu.base.families import family_of
from loldu.base.family import Family
from loldu.base.open import load_pipeline
from loldu.base.stable_diffusion_xl import POOLED, READ, STATES, TIME_IDS
from loldu.concept.format import Concept, ConceptLayer, write_concept
from loldu.concept.lora_names import original_name, place_of
from loldu.errors import LoLDUError
from loldu.pictures.crop import Framing, framings
from tests.loldu.base.original_layout import save_xl_file, unet_weights

PROMPTS = ["a toy", "", "a red sks toy"]
LONG = "a b c d e f g h i j k l m n o p q r s"
"""19 tokens; the tiny text encoders read 14 at once."""
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


def family_of_xl() -> Family:
    return family_of(StableDiffusionXLPipeline.__new__(StableDiffusionXLPipeline))


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, np.int16) for image in images])


def test_a_folder_is_opened_frozen_with_its_vae_in_float32(xl_folder: Path) -> None:
    pipeline = load_pipeline(str(xl_folder), torch_dtype=torch.bfloat16)
    assert family_of(pipeline).name == "Stable Diffusion XL"
    dtypes = {part: getattr(pipeline, part).dtype for part in PARTS}
    assert dtypes == {**dict.fromkeys(PARTS, torch.bfloat16), "vae": torch.float32}
    parameters = [p for part in PARTS for p in getattr(pipeline, part).parameters()]
    assert not any(p.requires_grad for p in parameters)


def test_clip_skip_is_refused(xl_folder: Path) -> None:
    with pytest.raises(LoLDUError, match="clip_skip 1 is for Stable Diffusion 1"):
        load_pipeline(BaseModelConfig(str(xl_folder), clip_skip=1))


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
            key = place_of("lora_unet", "unet", name, xl.unet).key
            assert key in {f"lora_unet_{each}".replace(".", "_") for each in names}, name


def test_names_sizes_and_bytes_at_the_shapes_of_sdxl(tmp_path: Path) -> None:
    """diffusers' reader of kohya's files turns every name back; docs state these numbers."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", *["CrossAttnDownBlock2D"] * 2),
            up_block_types=(*["CrossAttnUpBlock2D"] * 2, "UpBlock2D"),
            transformer_layers_per_block=(1, 2, 10),
            attention_head_dim=(5, 10, 20),
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    assert sum(p.numel() for p in unet.parameters()) == 2_567_463_684
    names = [name for name, part in unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    inside = [name for name in names if "blocks." in name or "mid_block." in name]
    keys = {
        f"{place_of('lora_unet', 'unet', name, unet).key}.lora_up.weight": name for name in inside
    }
    read = _maybe_map_sgm_blocks_to_diffusers(dict(keys), unet.config)
    assert len(read) == len(inside)
    for key, name in read.items():
        for theirs, ours in (("input", "down"), ("output", "up")):
            key = key.replace(f"{theirs}_blocks", f"{ours}_blocks")
        found = key.replace("middle_block", "mid_block").removesuffix(".lora_up.weight")
        parts = ["lora_unet", *name.split(".")]
        if "attentions" not in name:  # it renames the last part later
            parts = parts[: 4 if "mid_block" in name else 5]
        assert f"{found}_".startswith("_".join([*parts, ""])), name
    assert original_name("time_embedding.linear_2", 3) == "time_embed.2"
    assert original_name("up_blocks.1.upsamplers.0.conv", 3) == "output_blocks.5.2.conv"

    adapted = [unet.get_submodule(n) for n in names if n.endswith(family_of_xl().target_modules)]
    named = [name for name in names if name.endswith(family_of_xl().target_modules)]
    assert len(adapted) == 560
    assert sum(32 * (y.in_features + y.out_features) for y in adapted) == 46_448_640
    sizes = {}
    for r in (32, 128):
        layers = tuple(
            ConceptLayer(
                *("unet", name, y.out_features, y.in_features, "partial", "float16"),
                *(torch.ones(r), torch.arange(y.out_features)[-r:], torch.ones(3)),
            )
            for name, y in zip(named, adapted, strict=True)
        )
        config = {"unet": {"r": r, "target_modules": [*family_of_xl().target_modules]}}
        path = tmp_path / f"{r}.safetensors"
        write_concept(Concept("stabilityai/stable-diffusion-xl-base-1.0", config, layers, {}), path)
        sizes[r] = path.stat().st_size
    assert {r: round(size / 1000) for r, size in sizes.items()} == {32: 158, 128: 481}


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


@pytest.fixture
def reads_long(xl_folder: Path) -> StableDiffusionXLPipeline:
    return load_pipeline(BaseModelConfig(str(xl_folder), prompt_chunks=3))


def test_long_prompts_are_read_in_chunks_by_both_text_encoders(
    reads_long: StableDiffusionXLPipeline, plain: StableDiffusionXLPipeline
) -> None:
    family, prompts = family_of(reads_long), ["a b", "", LONG]
    found = family.encode_text(reads_long, prompts)
    sides, pooled = [], torch.empty(0)
    for number in ("", "_2"):
        tokenizer, encoder = (
            getattr(plain, name + number) for name in ("tokenizer", "text_encoder")
        )
        states = []
        for text in (LONG[:27], LONG[28:]):  # 14 letters, and the rest
            ids = tokenizer(text, padding="max_length", return_tensors="pt").input_ids
            with torch.no_grad():
                output = encoder(ids, output_hidden_states=True)
            states.append(output.hidden_states[-2][0])
            pooled = pooled if len(states) == 2 else output[0][0]
        sides.append(torch.cat(states))
    torch.testing.assert_close(found[STATES][2], torch.cat(sides, dim=-1))
    torch.testing.assert_close(found[POOLED][2], pooled)
    with torch.no_grad():
        short = plain.encode_prompt("a b", do_classifier_free_guidance=False)
    torch.testing.assert_close(found[STATES][0], short[0][0].repeat(2, 1))
    torch.testing.assert_close(found[POOLED][0], short[2][0])
    assert not found[STATES][1].any()
    encoders = {name: getattr(reads_long, name) for name in ("text_encoder", "text_encoder_2")}
    again = family.encode_again(encoders, found)
    for name in (STATES, POOLED):
        torch.testing.assert_close(again[name], found[name])


def test_pictures_of_long_prompts_are_the_same_in_any_batch(
    reads_long: StableDiffusionXLPipeline, xl: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    options = {"num_inference_steps": 2, "guidance_scale": 3.0}
    prompts, negatives, seeds = [LONG, "a toy", "a toy"], ["", LONG, "red"], [1, 2, 3]
    together = sample_images(reads_long, prompts, seeds, negative_prompts=negatives, **options)
    rows = zip(together, prompts, negatives, seeds, strict=True)
    for image, prompt, negative, seed in rows:
        (alone,) = sample_images(
            reads_long, [prompt], [seed], negative_prompts=[negative], **options
        )
        assert np.abs(pixels([image]) - pixels([alone])).max() <= 1
    (cut,) = sample_images(xl, [LONG], [1], **options)
    assert cut.tobytes() != together[0].tobytes()
    xl.unet.add_adapter(LoLDUConfig(r=8, alpha=8.0, init_weights=False))
    path = save_concept(xl, tmp_path / "toy.safetensors", metadata={"token": "sks"})
    load_concept(reads_long, path)
    (called,) = sample_images(reads_long, [f"{LONG[:35]} sks"], [1], **options)  # in its 2nd chunk
    set_strength(reads_long, 0)
    (base,) = sample_images(reads_long, [f"{LONG[:35]} sks"], [1], **options)
    assert called.tobytes() != base.tobytes()


def test_a_gate_acts_on_the_words_of_both_prompts(xl: StableDiffusionXLPipeline) -> None:
    xl.unet.add_adapter(LoLDUConfig(r=8, alpha=8.0, init_weights=False))
    route_concepts(xl, {"default": "sks"}, gate=0)
    changed: list[torch.Tensor] = []

    def compare(layer: nn.Module, args: tuple[torch.Tensor], output: torch.Tensor) -> None:
        changed.append((output != layer.base_layer(args[0])).any(-1))

    text_layers(xl.unet)[0].register_forward_hook(compare)
    options = {"num_inference_steps": 1, "guidance_scale": 3.0, "output_type": "latent"}
    xl("a sks toy", prompt_2="toy sks", **options)
    unconditional, own = changed[0]
    assert not unconditional.any()
    # A token is a letter: of the first prompt the letters 2 to 4, of the second 4 to 6.
    assert own.nonzero().flatten().tolist() == [2, 3, 4, 5, 6]


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
    ids = family_of_xl().describe_views([*middle, *crops, Framing.whole(64)])[TIME_IDS].tolist()
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
