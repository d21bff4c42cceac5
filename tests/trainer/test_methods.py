from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from loldu import load_concept, read_concept
from loldu.layer import LoLDULayer
from trainer.base import load_pipeline
from trainer.config import AdapterConfig, Method, Rank
from trainer.errors import TrainerError
from trainer.methods import add_adapter, delta_norm, save_result


@pytest.fixture
def pipeline(base_folder: Path) -> StableDiffusionPipeline:
    return load_pipeline(str(base_folder))


def predict(pipeline: StableDiffusionPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 8, 8, generator=generator)
    states = torch.randn(2, 16, 16, generator=generator)
    with torch.no_grad():
        return pipeline.unet(latents, torch.tensor([10, 500]), states).sample


def linears(pipeline: StableDiffusionPipeline) -> list[torch.Size]:
    return [
        module.weight.shape
        for name, module in pipeline.unet.named_modules()
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
    ]


@pytest.mark.parametrize("rank", [4, "full"])
@pytest.mark.parametrize(
    ("method", "train_scale"), [("loldu", True), ("loldu", False), ("svfit", True), ("lora", True)]
)
def test_what_is_trained_is_counted_fp32_and_changes_nothing_yet(
    method: Method, train_scale: bool, rank: Rank, pipeline: StableDiffusionPipeline
) -> None:
    shapes, before = linears(pipeline), predict(pipeline)
    trainable = add_adapter(
        pipeline.unet, AdapterConfig(method=method, rank=rank, train_scale=train_scale), seed=0
    )
    r = 16 if rank == "full" else rank
    clamped = [min(r, *shape) for shape in shapes]
    if method == "lora":
        expected = sum(r * sum(shape) for shape in shapes)
    else:
        expected = sum(clamped) + len(shapes) * train_scale
    assert sum(parameter.numel() for parameter in trainable.values()) == expected
    assert all(parameter.dtype == torch.float32 for parameter in trainable.values())
    torch.testing.assert_close(predict(pipeline), before, rtol=0, atol=0)
    assert delta_norm(pipeline.unet) == 0


@pytest.mark.parametrize("method", ["loldu", "lora"])
def test_trainables_stay_fp32_on_a_bf16_base(method: Method, base_folder: Path) -> None:
    unet = load_pipeline(str(base_folder), torch_dtype=torch.bfloat16).unet
    trainable = add_adapter(unet, AdapterConfig(method=method), seed=0)
    assert trainable
    assert all(parameter.dtype == torch.float32 for parameter in trainable.values())
    frozen = [p for name, p in unet.named_parameters() if name not in trainable]
    assert all(parameter.dtype == torch.bfloat16 for parameter in frozen)


def test_the_scale_is_that_of_alpha_over_rank(pipeline: StableDiffusionPipeline) -> None:
    trainable = add_adapter(
        pipeline.unet, AdapterConfig(rank="full", alpha=4.0, train_scale=False), seed=0
    )
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.fill_(1.0)
    for module in pipeline.unet.modules():
        if isinstance(module, LoLDULayer):
            torch.testing.assert_close(module.delta("default"), torch.full((16,), 4 / 16))


def test_delta_norm_is_that_of_the_weights(pipeline: StableDiffusionPipeline) -> None:
    before = {name: p.clone() for name, p in pipeline.unet.named_parameters()}
    trainable = add_adapter(pipeline.unet, AdapterConfig(rank=4), seed=0)
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.normal_(generator=torch.Generator().manual_seed(1))
    norm = delta_norm(pipeline.unet)
    for module in list(pipeline.unet.modules()):
        if hasattr(module, "merge") and hasattr(module, "base_layer"):
            module.merge()
    squares = [
        (p - before[name.replace(".base_layer", "")]).square().sum()
        for name, p in pipeline.unet.named_parameters()
        if name not in trainable
    ]
    assert norm == pytest.approx(torch.stack(squares).sum().sqrt().item(), rel=1e-4)


def test_no_matching_layer_is_one_sentence(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(TrainerError, match="--target_modules query value matches no layer"):
        add_adapter(pipeline.unet, AdapterConfig(target_modules=("query", "value")), seed=0)


@pytest.mark.parametrize("method", ["loldu", "svfit", "lora"])
@pytest.mark.parametrize("alpha", [None, 2.0])
def test_the_result_loads_into_a_fresh_pipeline(
    method: Method, alpha: float | None, base_folder: Path, tmp_path: Path
) -> None:
    pipeline = load_pipeline(str(base_folder))
    base = predict(pipeline)
    adapter = AdapterConfig(method=method, rank=4, alpha=alpha)
    trainable = add_adapter(pipeline.unet, adapter, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trainable.values():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    path = save_result(pipeline, adapter, tmp_path, {"instance_prompt": "sks"})
    fresh = load_pipeline(str(base_folder))
    if method == "lora":
        fresh.load_lora_weights(str(tmp_path))
        assert set(load_file(path))
    else:
        load_concept(fresh, path)
        assert read_concept(path).metadata["instance_prompt"] == "sks"
    assert (predict(fresh) - base).abs().max() > 1e-3
    torch.testing.assert_close(predict(fresh), predict(pipeline), rtol=1e-4, atol=1e-4)
    assert list(tmp_path.iterdir()) == [path]


def test_a_diverged_adapter_is_not_saved(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    trainable = add_adapter(pipeline.unet, AdapterConfig(), seed=0)
    next(iter(trainable.values())).data.fill_(torch.nan)
    with pytest.raises(TrainerError, match="not finite"):
        save_result(pipeline, AdapterConfig(), tmp_path, {})
    assert not list(tmp_path.iterdir())
