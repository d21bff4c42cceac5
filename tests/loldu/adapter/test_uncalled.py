"""Modules that read the weight of a layer and do not call it."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from diffusers import FluxTransformer2DModel, UNet2DConditionModel
from peft import get_peft_model, inject_adapter_in_model
from torch import Tensor, nn
from transformers import MambaConfig, MambaForCausalLM

from loldu import LoLDUConfig, load_concept, save_concept, set_strength, unload_concept
from loldu.adapter.layer import LoLDULayer

Model = UNet2DConditionModel | FluxTransformer2DModel


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def make_flux() -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
        axes_dims_rope=(2, 2, 4), guidance_embeds=False,
    ).eval()  # fmt: skip


@torch.no_grad()
def output(model: Model) -> Tensor:
    if isinstance(model, UNet2DConditionModel):
        return model(gaussian(2, 4, 8, 8), torch.tensor([3, 700]), gaussian(2, 5, 8)).sample
    return model(
        gaussian(2, 6, 4), encoder_hidden_states=gaussian(2, 5, 8, seed=1),
        pooled_projections=gaussian(2, 8), timestep=torch.tensor([0.3, 0.7]),
        img_ids=torch.zeros(6, 3), txt_ids=torch.zeros(5, 3),
    ).sample  # fmt: skip


def close(actual: Tensor, expected: Tensor) -> bool:
    return torch.allclose(actual, expected, atol=1e-5)


@pytest.fixture(params=["unet", "flux"])
def make(
    request: pytest.FixtureRequest, make_unet: Callable[[], UNet2DConditionModel]
) -> Callable[[], Model]:
    return make_unet if request.param == "unet" else make_flux


@pytest.fixture
def concept(make: Callable[[], Model], tmp_path: object) -> object:
    source = make()
    targets = ["to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj"]
    source.add_adapter(LoLDUConfig(r=4, target_modules=targets, init_weights=False))
    return save_concept(source, tmp_path / "dog.safetensors")


def test_a_concept_acts_through_fused_projections(
    make: Callable[[], Model], concept: object
) -> None:
    model = make()
    plain = output(model)
    load_concept(model, concept, "dog")
    expected = output(model)
    assert not close(expected, plain)
    model.fuse_qkv_projections()
    assert close(output(model), expected)
    set_strength(model, 0.5, "dog")
    half = output(model)
    model.unfuse_qkv_projections()
    assert close(output(model), half)
    assert not close(half, expected)
    model.fuse_qkv_projections()
    unload_concept(model, "dog")
    assert close(output(model), plain)
    model.unfuse_qkv_projections()
    model.fuse_qkv_projections()
    assert close(output(model), plain)
    assert not [m for m in model.modules() if "fuse_projections" in vars(m)]


def test_a_concept_acts_on_projections_that_are_fused_already(
    make: Callable[[], Model], concept: object
) -> None:
    model, unfused = make(), make()
    model.fuse_qkv_projections()
    for each in (model, unfused):
        load_concept(each, concept, "dog")
    assert close(output(model), output(unfused))
    assert not close(output(model), output(make()))


def test_a_merged_concept_acts_through_fused_projections_until_it_is_unmerged(
    make: Callable[[], Model], concept: object
) -> None:
    model = make()
    plain = output(model)
    load_concept(model, concept, "dog")
    expected = output(model)
    adapted = [m for m in model.modules() if isinstance(m, LoLDULayer)]
    for layer in adapted:
        layer.merge()
    model.fuse_qkv_projections()
    assert close(output(model), expected)
    for layer in adapted:
        layer.unmerge()
    assert close(output(model), expected)
    unload_concept(model, "dog")
    assert close(output(model), plain)


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_fuse_their_own_layers(
    make: Callable[[], Model], concept: object, copier: Callable[[Model], Model]
) -> None:
    model = make()
    load_concept(model, concept, "dog")
    before, duplicate = output(model), copier(model)
    duplicate.fuse_qkv_projections()
    set_strength(duplicate, 0.0, "dog")
    assert close(output(duplicate), output(make()))
    assert torch.equal(output(model), before)


@pytest.mark.parametrize("padded", [False, True])
def test_an_encoder_of_pytorchs_calls_its_adapted_layers(padded: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 24, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=padded).eval()
    x = gaussian(2, 5, 16)
    mask = torch.tensor([[False] * 5, [False] * 3 + [True] * 2]) if padded else None
    config = LoLDUConfig(r=4, target_modules=["linear1", "linear2"], init_weights=False)
    inject_adapter_in_model(config, encoder)
    live = encoder(x, src_key_padding_mask=mask).detach()
    with torch.no_grad():
        fast = encoder(x, src_key_padding_mask=mask)
    kept = slice(None) if mask is None else ~mask
    assert close(fast[kept], live[kept])


@pytest.mark.parametrize("kind", ["attention", "mamba"])
def test_a_layer_that_is_never_called_is_refused(kind: str) -> None:
    if kind == "attention":
        model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2)})
        reader = "'attention.out_proj' is read by MultiheadAttention"
    else:
        model = MambaForCausalLM(MambaConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1))
        reader = "'backbone.layers.0.mixer.out_proj' is read by the kernel of mamba"
    with pytest.raises(TypeError, match=rf"{reader} without .* in exclude_modules"):
        get_peft_model(model, LoLDUConfig(r=2, target_modules=["out_proj"]))
