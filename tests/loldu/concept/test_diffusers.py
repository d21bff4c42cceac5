"""LoLDU through diffusers' own adapter functions."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from torch import Tensor

from loldu import (
    ConceptError,
    LoLDUConfig,
    hotswap_concept,
    load_concept,
    mix,
    save_concept,
    unload_concept,
)
from loldu.adapter.layer import LoLDULayer

Make = Callable[..., UNet2DConditionModel]
GENERATOR = torch.Generator().manual_seed(0)
INPUTS = (
    torch.randn(2, 4, 8, 8, generator=GENERATOR),
    torch.tensor([3, 700]),
    torch.randn(2, 5, 8, generator=GENERATOR),
)


@torch.no_grad()
def output(unet: UNet2DConditionModel, dtype: torch.dtype = torch.float32) -> Tensor:
    sample, timestep, states = INPUTS
    return unet(sample.to(dtype), timestep, states.to(dtype)).sample


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_new_adapter_leaves_the_unet_as_it_was(make_unet: Make, dtype: torch.dtype) -> None:
    unet = make_unet().to(dtype)
    before = output(unet, dtype)
    unet.add_adapter(LoLDUConfig(r=8))
    assert torch.equal(output(unet, dtype), before)
    adapted = [name for name, module in unet.named_modules() if isinstance(module, LoLDULayer)]
    assert {name.split("attn")[1][2:] for name in adapted} == {"to_q", "to_k", "to_v", "to_out.0"}
    trained = [p for p in unet.parameters() if p.requires_grad]
    assert {p.dtype for p in trained} == {torch.float32}
    assert sum(p.numel() for p in trained) == len(adapted) * (8 + 1)


def test_training_through_the_unet(make_unet: Make) -> None:
    unet = make_unet()
    before = output(unet)
    unet.add_adapter(LoLDUConfig(r=8))
    optimizer = torch.optim.AdamW([p for p in unet.parameters() if p.requires_grad], lr=5e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = unet(*INPUTS).sample.square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    unet.disable_adapters()
    assert torch.equal(output(unet), before)
    unet.enable_adapters()
    assert not torch.equal(output(unet), before)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
@pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted")
def test_weighted_adapters_and_deletion(make_unet: Make) -> None:
    unet = make_unet()
    before = output(unet)
    unet.add_adapter(LoLDUConfig(r=8, init_weights=False), "a")
    unet.add_adapter(LoLDUConfig(r=4, init_weights=False, seed=1), "b")
    layer = next(module for module in unet.modules() if isinstance(module, LoLDULayer))
    full = {name: layer.get_delta_weight(name) for name in ("a", "b")}

    unet.set_adapters(["a", "b"], [0.5, 2.0])
    assert layer.active_adapters == ["a", "b"]
    torch.testing.assert_close(layer.get_delta_weight("a"), 0.5 * full["a"])
    torch.testing.assert_close(layer.get_delta_weight("b"), 2.0 * full["b"])
    unet.set_adapters(["a", "b"], [0.0, 0.0])
    torch.testing.assert_close(output(unet), before)
    unet.set_adapters("a")
    assert torch.equal(layer.get_delta_weight("a"), full["a"])

    scaled = output_at_scale(unet, 0.25)
    unet.set_adapters("a", 0.25)
    torch.testing.assert_close(scaled, output(unet))

    unet.delete_adapters("a")
    unet.delete_adapters("b")
    assert torch.equal(output(unet), before)


@torch.no_grad()
def output_at_scale(unet: UNet2DConditionModel, scale: float) -> Tensor:
    return unet(*INPUTS, cross_attention_kwargs={"scale": scale}).sample


def test_fusing_and_unloading(make_unet: Make) -> None:
    unet = make_unet()
    before = output(unet)
    unet.add_adapter(LoLDUConfig(r=8, init_weights=False))
    live = output(unet)
    unet.fuse_lora()
    torch.testing.assert_close(output(unet), live, atol=1e-4, rtol=1e-4)
    unet.unfuse_lora()
    assert torch.equal(output(unet), live)
    unet.unload_lora()
    assert not any(isinstance(module, LoLDULayer) for module in unet.modules())
    assert torch.equal(output(unet), before)


Pictures = Callable[[StableDiffusionPipeline], np.ndarray]


@pytest.fixture
def pictures(draw: Callable[..., np.ndarray]) -> Pictures:
    return lambda pipeline: draw(pipeline, ["a fox", "a hen"], [1, 2])


@pytest.fixture
def pipeline(make_pipeline: Callable[[], StableDiffusionPipeline]) -> StableDiffusionPipeline:
    """A pipeline with random adapters 'a' and 'b' on its UNet and its text encoder."""
    pipeline = make_pipeline()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        for name, options in (("a", {"r": 4}), ("b", {"r": 6, "seed": 1})):
            for part in (pipeline.unet, pipeline.text_encoder):
                part.add_adapter(LoLDUConfig(init_weights=False, **options), name)
    return pipeline


@torch.no_grad()
def merged(
    make_pipeline: Callable[[], StableDiffusionPipeline],
    adapted: StableDiffusionPipeline,
    weights: dict[str, float],
) -> StableDiffusionPipeline:
    """The base with its weights changed by hand, ``W + Σ w_i delta_W_i``."""
    plain = make_pipeline()
    for part in ("unet", "text_encoder"):
        for name, module in getattr(adapted, part).named_modules():
            if isinstance(module, LoLDULayer):
                weight = getattr(plain, part).get_submodule(name).weight
                for adapter, strength in weights.items():
                    full = module.get_delta_weight(adapter) / module.strength[adapter]
                    weight += strength * full
    return plain


def test_adapters_of_a_pipeline_in_use(
    pipeline: StableDiffusionPipeline,
    make_pipeline: Callable[[], StableDiffusionPipeline],
    pictures: Pictures,
) -> None:
    def assert_is(weights: dict[str, float]) -> None:
        expected = pictures(merged(make_pipeline, pipeline, weights))
        np.testing.assert_allclose(pictures(pipeline), expected, atol=1e-4)

    base = pictures(make_pipeline())
    pipeline.set_adapters(["a", "b"], [0.5, 1.2])
    assert pipeline.get_active_adapters() == ["a", "b"]
    assert pipeline.get_list_adapters() == {"unet": ["a", "b"], "text_encoder": ["a", "b"]}
    assert_is({"a": 0.5, "b": 1.2})
    assert abs(pictures(pipeline) - base).max() > 1e-2
    pipeline.disable_lora()
    assert np.array_equal(pictures(pipeline), base)
    pipeline.enable_lora()
    assert_is({"a": 0.5, "b": 1.2})
    pipeline.set_adapters("a")
    assert_is({"a": 1.0})
    pipeline.delete_adapters("b")
    assert pipeline.get_list_adapters() == {"unet": ["a"], "text_encoder": ["a"]}
    assert_is({"a": 1.0})
    pipeline.unload_lora_weights()
    assert pipeline.get_list_adapters() == {}
    assert np.array_equal(pictures(pipeline), base)


def test_strengths_of_parts_and_blocks(pipeline: StableDiffusionPipeline) -> None:
    pipeline.set_adapters("a", [{"unet": {"down": 0.25, "up": 0.5}, "text_encoder": 0.75}])
    for part, expected in (
        (pipeline.unet, {"down_blocks": 0.25, "mid_block": 1.0, "up_blocks": 0.5}),
        (pipeline.text_encoder, {"encoder": 0.75}),
    ):
        strengths = {
            name.removeprefix("text_model.").split(".")[0]: module.strength["a"]
            for name, module in part.named_modules()
            if isinstance(module, LoLDULayer)
        }
        assert strengths == expected


def test_fusing_a_pipeline(pipeline: StableDiffusionPipeline, pictures: Pictures) -> None:
    parts = ["unet", "text_encoder"]
    pipeline.set_adapters(["a", "b"], [0.5, 1.2])
    live = pictures(pipeline)
    pipeline.fuse_lora(components=parts, safe_fusing=True)
    assert pipeline.num_fused_loras == 2
    fused = pictures(pipeline)
    np.testing.assert_allclose(fused, live, atol=1e-4)
    pipeline.unfuse_lora(components=parts)
    assert np.array_equal(pictures(pipeline), live)
    pipeline.fuse_lora(components=parts)
    pipeline.unload_lora_weights()
    # Without the adapters the weights stay changed, as they do for a LoRA.
    np.testing.assert_array_equal(pictures(pipeline), fused)


def test_one_adapter_fused_at_a_scale(
    pipeline: StableDiffusionPipeline, pictures: Pictures
) -> None:
    pipeline.set_adapters("a", 0.25)
    expected = pictures(pipeline)
    pipeline.set_adapters(["a", "b"])
    pipeline.fuse_lora(components=["unet", "text_encoder"], lora_scale=0.25, adapter_names=["a"])
    np.testing.assert_allclose(pictures(pipeline), expected, atol=1e-4)


def test_operations_that_need_a_lora_are_refused(
    pipeline: StableDiffusionPipeline,
    make_pipeline: Callable[[], StableDiffusionPipeline],
    pictures: Pictures,
    tmp_path: Path,
) -> None:
    with pytest.raises(AttributeError, match="lora_A"):
        pipeline.set_lora_device(["a"], "cpu")
    with pytest.raises(ValueError, match="only supports saving Custom Diffusion"):
        pipeline.unet.save_attn_procs(tmp_path)
    concept = save_concept(pipeline, tmp_path / "dog.safetensors", "a")
    other = make_pipeline()
    base = pictures(other)
    with pytest.raises(ValueError, match="Invalid LoRA checkpoint"):
        other.load_lora_weights(concept)
    assert np.array_equal(pictures(other), base)


PARTS = ["unet", "text_encoder"]
CALLS: dict[str, Callable[[StableDiffusionPipeline], object]] = {
    "delete_adapters": lambda p: p.delete_adapters("default"),
    "disable_lora": lambda p: p.disable_lora(),
    "enable_lora": lambda p: p.enable_lora(),
    "unload_lora_weights": lambda p: p.unload_lora_weights(),
    "set_adapters": lambda p: p.set_adapters("default", 0.5),
    "fuse_lora": lambda p: p.fuse_lora(components=PARTS),
    "unfuse_lora": lambda p: p.unfuse_lora(components=PARTS),
    "unload_concept": unload_concept,
}

SLOW = [call for call in CALLS if call not in ("delete_adapters", "fuse_lora")]


@torch.no_grad()
def outputs(pipeline: StableDiffusionPipeline) -> Tensor:
    states = pipeline.text_encoder(torch.arange(8)[None]).last_hidden_state
    return torch.cat([pipeline.unet(*INPUTS).sample.flatten(), states.flatten()])


@pytest.fixture
def concepts(pipeline: StableDiffusionPipeline, tmp_path: Path) -> dict[str, Path]:
    return {name: save_concept(pipeline, tmp_path / name, name) for name in "ab"}


@pytest.mark.filterwarnings("ignore:Already unmerged", "ignore:All adapters are already merged")
@pytest.mark.parametrize(
    "first",
    [
        *("delete_adapters", "fuse_lora"),
        *(pytest.param(call, marks=pytest.mark.slow) for call in SLOW),
    ],
)
def test_concepts_are_loaded_and_swapped_after_calls_of_diffusers_in_any_order(
    first: str, make_pipeline: Callable[[], StableDiffusionPipeline], concepts: dict[str, Path]
) -> None:
    plain = make_pipeline()
    base = outputs(plain)
    wanted = {}
    for name, path in concepts.items():
        load_concept(plain, path)
        wanted[name] = outputs(plain)
        unload_concept(plain)
    assert torch.equal(outputs(plain), base)
    pipeline = plain
    for second in (None, *CALLS):
        load_concept(pipeline, concepts["b"])
        gone = fused = False
        for call in (first, second):
            # Without an adapter, these calls of diffusers are errors of their own.
            if call is None or (gone and call != "unfuse_lora"):
                continue
            if fused and call == "unload_concept":
                with pytest.raises(ConceptError, match="unmerge it first"):
                    unload_concept(pipeline)
                continue
            CALLS[call](pipeline)
            gone = gone or call in ("delete_adapters", "unload_lora_weights", "unload_concept")
            fused = call == "fuse_lora" or (fused and call != "unfuse_lora")
        if fused:
            with pytest.raises(ConceptError, match=r"unmerge it first|another base model"):
                load_concept(pipeline, concepts["a"], "new")
            pipeline = make_pipeline()
            continue
        if not gone:
            hotswap_concept(pipeline, concepts["b"])
            load_concept(pipeline, concepts["a"], "new")
            assert torch.allclose(outputs(pipeline), wanted["a"], atol=1e-5)
            unload_concept(pipeline, "new")
            mix(pipeline, {"default": 1.0})
            assert torch.allclose(outputs(pipeline), wanted["b"], atol=1e-5)
            unload_concept(pipeline)
        assert torch.equal(outputs(pipeline), base)
        load_concept(pipeline, concepts["a"])
        assert torch.allclose(outputs(pipeline), wanted["a"], atol=1e-5), second
        pipeline.set_adapters("default", 1.0)
        assert pipeline.get_list_adapters() == {part: ["default"] for part in PARTS}
        unload_concept(pipeline)
        assert pipeline.get_list_adapters() == {}
        assert torch.equal(outputs(pipeline), base)
