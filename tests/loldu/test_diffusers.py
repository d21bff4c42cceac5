"""LoLDU through diffusers' own adapter functions."""

from collections.abc import Callable

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from loldu import LoLDUConfig
from loldu.layer import LoLDULayer

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
