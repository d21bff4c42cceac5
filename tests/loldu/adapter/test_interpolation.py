"""Interpolation between concepts by `mix`, against dense weights in float64."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loldu import LoLDUConfig, ldu, load_concept, mix, save_concept
from loldu.adapter.layer import LoLDULayer

MakeModel = Callable[..., nn.Module]
X = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))


def build(make: MakeModel) -> PeftModel:
    """Two concepts of different ranks and layers in common."""
    common = {"target_modules": ["wide", "tall"], "init_weights": False, "alpha": 2.0}
    model = get_peft_model(make(), LoLDUConfig(r=6, **common), "a")
    model.add_adapter("b", LoLDUConfig(r=3, seed=1, **common))
    return model.eval()


@torch.no_grad()
def output(model: nn.Module) -> Tensor:
    return model(X)


def test_both_ends_are_the_concepts_to_the_bit(make_two_layers: MakeModel, tmp_path: Path) -> None:
    model = build(make_two_layers)
    ends = {}
    for name in ("a", "b"):
        alone = make_two_layers()
        load_concept(alone, save_concept(model, tmp_path / name, name))
        ends[name] = output(alone)
    for name, t in (("a", 0.0), ("b", 1.0)):
        mix(model, {"a": 1 - t, "b": t})
        assert torch.equal(output(model), ends[name])
    assert not torch.equal(ends["a"], ends["b"])


@pytest.mark.parametrize("t", [0.25, 0.5, 0.9])
def test_between_them_weights_are_the_weighted_mean(make_two_layers: MakeModel, t: float) -> None:
    model = build(make_two_layers)
    plain = make_two_layers().double()
    for name in ("wide", "tall"):
        layer = model.base_model.model.get_submodule(name)
        assert isinstance(layer, LoLDULayer)
        weight = plain.get_submodule(name).weight
        ends = []
        for adapter, r in (("a", 6), ("b", 3)):
            factors = ldu(weight.detach().float(), r)
            delta = layer.diagonal(adapter).delta().detach().double()
            change = factors.left.double() @ torch.diag(delta) @ factors.right.double()
            ends.append(weight.detach() + change)
        weight.data = (1 - t) * ends[0] + t * ends[1]
    mix(model, {"a": 1 - t, "b": t})
    with torch.no_grad():
        expected = plain(X.double())
    torch.testing.assert_close(output(model).double(), expected, atol=1e-6, rtol=1e-6)
