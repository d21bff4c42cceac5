from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor

from benchmarks.floor import floor_step, main, where_gradients_begin, with_shared_weights
from benchmarks.stable_diffusion import projections, random_inputs


def unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    made = UNet2DConditionModel(block_out_channels=(32,) * 4, cross_attention_dim=16)
    return made.requires_grad_(False).eval()


def test_gradients_begin_at_the_first_attention_and_at_the_text() -> None:
    model = unet()
    begins = where_gradients_begin(model, random_inputs(model, 16))
    first = {f"down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_{part}" for part in "qkv"}
    of_text = {name for name in projections(model) if name.endswith(("attn2.to_k", "attn2.to_v"))}
    assert len(of_text) == 2 * 16
    assert begins.keys() == first | of_text


def test_the_floor_computes_the_gradient_of_every_projection_output() -> None:
    model = unet()
    inputs = random_inputs(model, 16)
    floor = with_shared_weights(model)
    got = floor_step(floor, inputs)()
    outputs: dict[str, Tensor] = {}
    for name, linear in projections(model).items():
        linear.register_forward_hook(
            lambda _, __, output, name=name: outputs.update({name: output})
        )
    every_input = {
        name: tensor.clone().requires_grad_(tensor.is_floating_point())
        for name, tensor in inputs.items()
    }
    result = model(**every_input).sample
    begins = [outputs[name] for name in where_gradients_begin(floor_without(floor), inputs)]
    expected = torch.autograd.grad(result, begins, torch.ones_like(result))
    for ours, theirs in zip(got, expected, strict=True):
        torch.testing.assert_close(ours, theirs.sum((0, 1)), rtol=1e-3, atol=1e-4)


def floor_without(floor: UNet2DConditionModel) -> UNet2DConditionModel:
    """Return the U-Net with all layers frozen again."""
    return floor.requires_grad_(False)


def test_the_command_takes_steps_with_a_progress_bar(
    base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--pretrained_model_name_or_path", str(base_folder), "--max_train_steps", "2"]
    main(flags)
    assert "floor: 100%" in capsys.readouterr().err


def test_a_copy_has_its_own_layers_and_the_same_weights() -> None:
    model = unet()
    copy = with_shared_weights(model)
    floor_step(copy, random_inputs(copy, 16))
    weights = dict(model.named_parameters())
    for name, weight in copy.named_parameters():
        assert weights.get(name) is weight or weight.requires_grad  # a bias of the copy's own
    assert not any(weight.requires_grad for weight in weights.values())
    assert len([*copy.parameters()]) == len(weights) + 35
