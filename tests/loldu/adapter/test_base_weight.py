"""Base weights that change under their adapters, or are merged, offloaded or cast."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model, inject_adapter_in_model
from torch import Tensor, nn

from loldu import ConceptError, LoLDUConfig, any_base, load_concept, save_concept
from loldu.adapter.layer import LoLDULayer

Make = Callable[..., nn.Module]
TARGETS = ["wide", "tall"]
X = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))


def trained(make: Make, **options: object) -> PeftModel:
    model = make()
    model = get_peft_model(model, LoLDUConfig(r=6, target_modules=TARGETS, **options))
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def layers(model: nn.Module) -> list[LoLDULayer]:
    return [module for module in model.modules() if isinstance(module, LoLDULayer)]


def noise(weight: Tensor) -> Tensor:
    return torch.randn(weight.shape, generator=torch.Generator().manual_seed(2))


def write_in_place(weight: nn.Parameter) -> None:
    with torch.no_grad():
        weight.copy_(noise(weight))


def write_data(weight: nn.Parameter) -> None:
    weight.data.copy_(noise(weight))


def test_a_saved_concept_is_of_the_weights_it_is_saved_with(
    make_two_layers: Make, tmp_path: Path
) -> None:
    model = trained(make_two_layers)
    for layer in layers(model):
        write_in_place(layer.weight)
    path = save_concept(model, tmp_path / "c.safetensors")
    other = make_two_layers()
    for name in TARGETS:
        write_in_place(other.get_submodule(name).weight)
    load_concept(other, path)
    for ours, theirs in zip(layers(model), layers(other), strict=True):
        torch.testing.assert_close(
            ours.get_delta_weight("default"), theirs.get_delta_weight("default")
        )


def test_an_adapter_added_later_gets_the_pivots_of_the_weight_there_is(
    make_two_layers: Make,
) -> None:
    model = trained(make_two_layers)
    for layer in layers(model):
        write_in_place(layer.weight)
    model.add_adapter("later", LoLDUConfig(r=6, target_modules=TARGETS))
    for layer in layers(model):
        order = torch.linalg.lu(layer.weight.double())[0].argmax(0)
        assert layer.diagonal("later").pivots.tolist() == order[:6].tolist()


@pytest.mark.parametrize("write", [write_in_place, write_data])
def test_a_base_that_changed_since_a_concept_fitted_it_is_refused(
    make_two_layers: Make, tmp_path: Path, write: Callable[[nn.Parameter], None]
) -> None:
    path = save_concept(trained(make_two_layers), tmp_path / "c.safetensors")
    model = make_two_layers()
    load_concept(model, path, "first")
    for layer in layers(model):
        write(layer.weight)
    with pytest.raises(ConceptError, match="made for another base model"):
        load_concept(model, path, "second")


def test_factors_made_in_inference_mode_serve_training(make_two_layers: Make) -> None:
    model = trained(make_two_layers)
    for layer in layers(model):
        pivots = layer.diagonal("default").pivots
        pivots.copy_(pivots.roll(1))
    with any_base():
        with torch.inference_mode():
            expected = model(X)
        y = model(X)
    torch.testing.assert_close(y, expected.clone())
    y.sum().backward()


def test_autocast_does_not_round_a_merge(make_two_layers: Make) -> None:
    model, other = trained(make_two_layers), trained(make_two_layers)
    with torch.autocast("cpu", torch.bfloat16):
        model.merge_adapter()
    other.merge_adapter()
    for ours, theirs in zip(layers(model), layers(other), strict=True):
        assert torch.equal(ours.weight, theirs.weight)


def test_a_concept_that_cannot_be_factored_in_one_layer_is_on_none(
    make_two_layers: Make, tmp_path: Path
) -> None:
    def make() -> nn.Module:
        model = make_two_layers()
        model.tall.weight.data *= 0.01
        # In half precision the first columns of the last layer underflow.
        model.tall.weight.data[:, :6] = 5e-9 * noise(model.tall.weight[:, :6])
        return model

    path = save_concept(trained(make), tmp_path / "c.safetensors")
    model = make().half()
    names = [name for name, _ in model.named_modules()]
    with pytest.raises(ConceptError, match=r"c\.safetensors does not fit this base in its dtype"):
        load_concept(model, path, "dog")
    assert [name for name, _ in model.named_modules()] == names
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_a_strength_must_be_finite(make_two_layers: Make, tmp_path: Path, strength: float) -> None:
    path = save_concept(trained(make_two_layers), tmp_path / "c.safetensors")
    with pytest.raises(ConceptError, match="must be a finite number"):
        load_concept(make_two_layers(), path, strength=strength)


def test_nothing_is_loaded_onto_merged_layers(make_two_layers: Make, tmp_path: Path) -> None:
    model = trained(make_two_layers)
    path = save_concept(model, tmp_path / "c.safetensors")
    model.merge_adapter()
    with pytest.raises(ConceptError, match="is merged into layer"):
        load_concept(model, path, "second")


def test_diffusers_sees_a_concept_beside_an_injected_adapter(
    make_unet: Make, tmp_path: Path
) -> None:
    unet = make_unet()
    unet.add_adapter(LoLDUConfig(r=4))
    path = save_concept(unet, tmp_path / "c.safetensors")
    other = make_unet()
    inject_adapter_in_model(LoLDUConfig(r=4), other, "first")
    load_concept(other, path, "second")
    assert other.active_adapters() == ["second"]
