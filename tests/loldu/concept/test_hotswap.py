"""Hot-swapping: another concept replaces a loaded one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from loldu import (
    ConceptError,
    LoLDUConfig,
    any_base,
    hotswap_concept,
    load_concept,
    mix,
    save_concept,
    set_strength,
)
from loldu.adapter.layer import LoLDULayer

Make = Callable[..., nn.Module]
TARGETS = ["wide", "tall"]
X = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))


def write(make: Make, path: Path, seed: int, **options: object) -> Path:
    generator = torch.Generator().manual_seed(seed)
    config = LoLDUConfig(**{"r": 6, "target_modules": TARGETS} | options)
    model = get_peft_model(make(), config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    return save_concept(model, path)


def loaded(make: Make, path: Path) -> nn.Module:
    model = make()
    load_concept(model, path, "dog")
    return model


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    "options",
    [{}, {"r": 3}, {"target_modules": ["tall"]}, {"train_scale": False, "alpha": 2}],
    ids=str,
)
def test_hot_swapping_equals_loading(
    make_two_layers: Make, tmp_path: Path, options: dict[str, object]
) -> None:
    first = write(make_two_layers, tmp_path / "first", 1)
    other = write(make_two_layers, tmp_path / "other", 2, **options)
    model = loaded(make_two_layers, first)
    before = model(X)
    places = {name: parameter.data_ptr() for name, parameter in model.named_parameters()}
    hotswap_concept(model, other, "dog")
    torch.testing.assert_close(model(X), loaded(make_two_layers, other)(X))
    assert not torch.allclose(model(X), before)
    assert {name: p.data_ptr() for name, p in model.named_parameters()} == places


def test_strengths_and_active_adapters_stay(make_two_layers: Make, tmp_path: Path) -> None:
    first, other = (write(make_two_layers, tmp_path / str(seed), seed) for seed in (1, 2))
    model = loaded(make_two_layers, first)
    load_concept(model, first, "cat")
    mix(model, {"cat": 0.5, "dog": 1.5})
    hotswap_concept(model, other, "dog")
    expected = loaded(make_two_layers, other)
    load_concept(expected, first, "cat")
    mix(expected, {"cat": 0.5, "dog": 1.5})
    torch.testing.assert_close(model(X), expected(X))


@pytest.mark.parametrize(
    "trained",
    [{"alpha": 3}, {"residual": "perturb", "diagonal_init": "standard_normal"}],
    ids=str,
)
def test_an_adapter_in_training_may_be_swapped_too(
    make_two_layers: Make, tmp_path: Path, trained: dict[str, object]
) -> None:
    other = write(make_two_layers, tmp_path / "other", 2)
    config = LoLDUConfig(r=6, target_modules=TARGETS, init_weights=False, **trained)
    model = get_peft_model(make_two_layers(), config)
    for module in model.modules():
        if isinstance(module, LoLDULayer):
            module.diagonal("default").ds.data.fill_(0.3)
    hotswap_concept(model, other)
    torch.testing.assert_close(model(X), loaded(make_two_layers, other)(X))


def test_other_pivots_bring_their_factors(make_two_layers: Make, tmp_path: Path) -> None:
    first = write(make_two_layers, tmp_path / "first", 1)
    source = loaded(make_two_layers, write(make_two_layers, tmp_path / "other", 2))
    for module in source.modules():
        if isinstance(module, LoLDULayer):
            pivots = module.diagonal("dog").pivots
            pivots.copy_(pivots.roll(1))
    other = save_concept(source, tmp_path / "rolled", "dog")
    model = loaded(make_two_layers, first)
    hotswap_concept(model, other, "dog")
    with any_base():  # no base chooses these rows
        expected = source(X)
    torch.testing.assert_close(model(X), expected)
    smaller = write(make_two_layers, tmp_path / "smaller", 3, r=4)
    with pytest.raises(ConceptError, match="other directions in layer"):
        hotswap_concept(model, smaller, "dog")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"r": 7}, "has 7 directions in layer 'wide', and there are 6"),
        ({"pivoting": "complete"}, "other directions in layer 'wide'"),
        ({"target_modules": ["wide", "tall", "out"]}, "changes layer 'out'"),
    ],
)
def test_a_concept_that_does_not_fit_changes_nothing(
    make_two_layers: Make, tmp_path: Path, options: dict[str, object], message: str
) -> None:
    def make() -> nn.Module:
        model = make_two_layers()
        torch.manual_seed(0)
        model.out = nn.Linear(5, 5)
        return model

    model = loaded(make, write(make, tmp_path / "first", 1))
    set_strength(model, 0.7, "dog")
    before = tensors(model)
    other = write(make, tmp_path / "other", 2, **options)
    with pytest.raises(ConceptError, match=message):
        hotswap_concept(model, other, "dog")
    with pytest.raises(ConceptError, match="no concept named 'cat' here to swap"):
        hotswap_concept(model, tmp_path / "first", "cat")
    after = tensors(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
