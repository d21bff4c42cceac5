"""Strengths, mixtures, a concept for every picture of a batch, and unloading."""

import copy
import gc
import math
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn

from loldu import (
    ConceptError,
    LoLDUConfig,
    load_concept,
    mix,
    save_concept,
    set_concepts,
    set_strength,
    unload_concept,
)
from loldu.adapter.layer import LoLDULayer

MakeModel = Callable[..., nn.Module]
TARGETS = ["wide", "tall"]
X = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))
KINDS = {
    "dog": {},
    "toy": {"r": 3, "seed": 1},
    "svd": {"factorization": "svd", "seed": 2},
    "one": {"target_modules": ["tall"], "pivoting": "complete", "seed": 3},
}


def build(make: MakeModel, *names: str) -> PeftModel:
    """Return a PeftModel with a random adapter of each named kind; the first is active."""
    model, defaults = make(), {"r": 6, "target_modules": TARGETS, "init_weights": False}
    for name in names:
        config = LoLDUConfig(**(defaults | KINDS[name]))
        # The same draws, whatever was built before.
        torch.manual_seed(config.seed)
        if isinstance(model, PeftModel):
            model.add_adapter(name, config)
        else:
            model = get_peft_model(model, config, name)
    return model.eval()


@torch.no_grad()
def output(model: nn.Module, x: Tensor = X) -> Tensor:
    return model(x)


@torch.no_grad()
def merged_by_hand(make: MakeModel, model: nn.Module, weights: dict[str, float]) -> nn.Module:
    """A plain model whose weights are those of the base plus the weighted delta_W."""
    plain = make()
    for name, layer in model.named_modules():
        if isinstance(layer, LoLDULayer):
            own = plain.get_submodule(name.removeprefix("base_model.model."))
            for adapter, weight in weights.items():
                if adapter in layer.r:
                    assert layer.strength[adapter] == 1
                    own.weight += weight * layer.get_delta_weight(adapter)
    return plain


MIXTURES = [
    {"dog": 0.7},
    {"dog": 0.7, "toy": 0.4},
    {"dog": -1.5, "toy": 2.0},
    {"toy": 0.5, "svd": -0.5, "one": 1.25},
    {"dog": 0.0, "one": 1.0},
]


@pytest.mark.parametrize("weights", MIXTURES, ids=str)
def test_a_mixture_is_the_sum_of_the_changes_of_weights(
    make_two_layers: MakeModel, weights: dict[str, float]
) -> None:
    model = build(make_two_layers, *KINDS)
    expected = output(merged_by_hand(make_two_layers, model, weights))
    trained = [p.requires_grad for p in model.parameters()]
    mix(model, weights)
    torch.testing.assert_close(output(model), expected)
    assert [p.requires_grad for p in model.parameters()] == trained
    assert model.active_adapters == list(weights)


def test_an_empty_mixture_is_the_base(make_two_layers: MakeModel) -> None:
    model = build(make_two_layers, "dog", "toy")
    mix(model, {})
    assert torch.equal(output(model), output(make_two_layers()))
    mix(model, {"dog": 1})
    assert not torch.equal(output(model), output(make_two_layers()))


def test_strength_goes_from_the_base_to_beyond(make_two_layers: MakeModel) -> None:
    model = build(make_two_layers, "dog", "toy")
    plain = {s: merged_by_hand(make_two_layers, model, {"dog": s}) for s in (0.5, 1.0, 2.5, -1.0)}
    before = [p.clone() for p in model.parameters()]
    for strength, expected in plain.items():
        set_strength(model, strength)
        torch.testing.assert_close(output(model), output(expected))
        set_strength(model, 7.0, "toy")
        torch.testing.assert_close(output(model), output(expected))
    set_strength(model, 0)
    assert torch.equal(output(model), output(make_two_layers()))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_strength_zero_hides_values_that_are_not_finite(make_two_layers: MakeModel) -> None:
    model = build(make_two_layers, "dog")
    nn.init.constant_(model.base_model.model.wide.diagonal("dog").dz, torch.inf)
    set_strength(model, 0.0)
    assert torch.equal(output(model), output(make_two_layers()))


def refuse(message: str, call: Callable[..., None], *args: object) -> None:
    with pytest.raises(ConceptError, match=message) as refusal:
        call(*args)
    assert "\n" not in str(refusal.value)


def test_invalid_mixtures_are_refused_before_anything_changes(
    make_two_layers: MakeModel,
) -> None:
    model = build(make_two_layers, "dog", "toy")
    before = output(model)
    for call, args in (
        (unload_concept, ["cat"]),
        (set_strength, [0.5, "cat"]),
        (mix, [{"dog": 0.5, "cat": 1.0}]),
        (set_concepts, [["dog", "cat"]]),
    ):
        refuse(r"no concept named 'cat' here \(loaded: dog, toy\)", call, model, *args)
        refuse(r"no concept named .* \(loaded: none\)", call, make_two_layers(), *args)
    for wrong in (float("nan"), float("inf")):
        refuse("the strength must be a finite number", set_strength, model, wrong)
        refuse("the strength of 'toy' must be a finite", mix, model, {"dog": 0.5, "toy": wrong})
    refuse("no concept is active here", set_strength, make_two_layers(), 0.5)
    for wrong_list in ("dog", []):
        refuse("pass a list with a concept's name or None", set_concepts, model, wrong_list)
    with pytest.raises(TypeError, match=r"expected a model or a diffusers pipeline, got str"):
        mix("model", {"dog": 1.0})
    assert torch.equal(output(model), before)
    model.merge_adapter()
    for call, args in (
        (unload_concept, ["toy"]),
        (set_strength, [0.5]),
        (mix, [{"dog": 0.5}]),
        (set_concepts, [["dog"]]),
    ):
        refuse("dog is merged into layer 'wide': unmerge it first", call, model, *args)
    model.unmerge_adapter()
    assert torch.equal(output(model), before)
    refuse("the strength of 'dog' must be a finite", set_concepts, model, [{"dog": math.inf}])
    refuse("there is no concept named 'cat'", set_concepts, model, [{"cat": 1.0}])


def test_modules_trained_in_full_cannot_be_mixed(make_two_layers: MakeModel) -> None:
    config = LoLDUConfig(r=4, target_modules=TARGETS, modules_to_save=["head"])
    model = get_peft_model(make_two_layers(), config)
    refuse("also trains head in full .* cannot be mixed", mix, model, {"default": 0.5})
    refuse("also trains head in full .* cannot be mixed", set_concepts, model, ["default", None])


@pytest.mark.parametrize("by_name", [False, True], ids=["set_concepts", "adapter_names"])
def test_every_row_has_its_own_concepts(make_two_layers: MakeModel, by_name: bool) -> None:
    model = build(make_two_layers, *KINDS)
    rows = ["toy", None, "dog", {"dog": 0.5, "svd": -1.0}, "one", {"toy": 2.0, "dog": 0.0}]
    weights = [{"toy": 1}, {}, {"dog": 1}, {"dog": 0.5, "svd": -1}, {"one": 1}, {"toy": 2}]
    expected = torch.stack(
        [
            output(merged_by_hand(make_two_layers, model, mixture), x)
            for mixture, x in zip(weights, X, strict=True)
        ]
    )
    if by_name:
        names = [name or "__base__" for name in rows]
        mixed = model(X, adapter_names=names)
    else:
        set_concepts(model, rows)
        mixed = output(model)
    torch.testing.assert_close(mixed, expected)
    assert torch.equal(mixed[1], output(make_two_layers())[1])
    set_concepts(model, None)
    assert torch.equal(output(model), output(build(make_two_layers, "dog")))


def test_rows_follow_strengths_and_are_repeated(make_two_layers: MakeModel) -> None:
    model = build(make_two_layers, "dog", "toy")
    half = output(merged_by_hand(make_two_layers, model, {"dog": 0.5}))
    toy = output(merged_by_hand(make_two_layers, model, {"toy": 1.0}))
    set_concepts(model, ["dog", "toy"])
    set_strength(model, 0.5, "dog")
    torch.testing.assert_close(output(model)[0::2], half[0::2])
    torch.testing.assert_close(output(model)[1::2], toy[1::2])
    set_strength(model, 0.0)
    assert torch.equal(output(model), output(make_two_layers()))
    set_strength(model, 1.0)
    set_concepts(model, ["toy"])
    torch.testing.assert_close(output(model), toy)


def test_a_batch_that_does_not_fit_is_an_error(make_two_layers: MakeModel) -> None:
    model = build(make_two_layers, "dog", "toy")
    set_concepts(model, ["dog", "toy", None, None])
    with pytest.raises(ValueError, match=r"gave 4 concepts, and layer 'wide' .* a batch of 6: "):
        output(model)
    with model.disable_adapter():
        assert torch.equal(output(model), output(make_two_layers()))
    with pytest.raises(ValueError, match=r"Length of `adapter_names` .* got 2 and 6"):
        model(X, adapter_names=["dog", "toy"])
    with pytest.raises(ValueError, match=r"non-existing adapter\(s\): cat"):
        model(X, adapter_names=["cat"] * 6)
    model.train()
    with pytest.raises(ValueError, match=r"in training mode"):
        model(X, adapter_names=["dog"] * 6)
    model.eval().merge_adapter(["dog"])
    with pytest.raises(ValueError, match=r"Cannot pass `adapter_names` when there are merged"):
        model(X, adapter_names=["dog"] * 6)


def test_activating_another_adapter_ends_concepts_per_row(
    make_two_layers: MakeModel, tmp_path: Path
) -> None:
    model = build(make_two_layers, "dog", "toy")
    path = save_concept(model, tmp_path / "dog.safetensors", "dog")
    dog = output(model)
    for end in (
        lambda: mix(model, {"dog": 1.0}),
        lambda: model.set_adapter("dog"),
        lambda: load_concept(model, path, "again"),
        lambda: unload_concept(model, "again"),
    ):
        set_concepts(model, ["toy", "dog", None])
        assert not torch.equal(output(model), dog)
        end()
        expected = dog if model.active_adapters else output(make_two_layers())
        assert torch.equal(output(model), expected)


def test_rows_reach_modules_saved_in_full(make_two_layers: MakeModel) -> None:
    config = LoLDUConfig(r=4, target_modules=TARGETS, modules_to_save=["head"])
    model = get_peft_model(make_two_layers(), config).eval()
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["default"].bias.fill_(100.0)
    mixed = model(X, adapter_names=["default", "__base__"] * 3)
    assert (mixed[0::2] > 50).all()
    assert torch.equal(mixed[1::2], output(make_two_layers())[1::2])


@pytest.mark.parametrize("names", [["dog", "toy"], ["dog", "svd", "one"]], ids=str)
def test_gradients_reach_the_adapter_of_every_row(
    make_two_layers: MakeModel, names: list[str]
) -> None:
    model = build(make_two_layers, *names)
    weights = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    rows = (names * 3)[:6]
    set_concepts(model, rows)
    (model(X) * weights).sum().backward()
    mixed = {name: p.grad.clone() for name, p in model.named_parameters() if ".dz" in name}
    model.zero_grad()
    for row, name in enumerate(rows):
        mix(model, {name: 1.0})
        (model(X[row : row + 1]) * weights[row]).sum().backward()
    alone = {name: p.grad for name, p in model.named_parameters() if ".dz" in name}
    torch.testing.assert_close(mixed, alone)


def test_copies_keep_their_rows(make_two_layers: MakeModel) -> None:
    model = build(make_two_layers, "dog", "toy")
    set_concepts(model, ["dog", None, "toy"])
    assert torch.equal(output(copy.deepcopy(model)), output(model))


@pytest.mark.parametrize("bare", [False, True], ids=["PeftModel", "model"])
def test_unloading_frees_an_adapter_and_finally_restores_the_base(
    make_two_layers: MakeModel, tmp_path: Path, bare: bool
) -> None:
    source = build(make_two_layers, "dog", "svd", "one")
    paths = {n: save_concept(source, tmp_path / n, n) for n in ("dog", "svd", "one")}
    model = make_two_layers() if bare else get_peft_model(make_two_layers(), LoLDUConfig(
        r=2, target_modules=TARGETS), "shell")  # fmt: skip
    for name, path in paths.items():
        load_concept(model, path, name)
    if not bare:
        unload_concept(model, "shell")
    adapted = output(model)
    layer = next(m for m in model.modules() if isinstance(m, LoLDULayer))
    freed = [weakref.ref(layer.factors["svd"]), weakref.ref(layer.diagonal("svd"))]
    kept = weakref.ref(layer.factors["dog"])
    unload_concept(model, "svd")
    gc.collect()
    assert [ref() for ref in freed] == [None, None]
    assert kept() is not None
    assert torch.equal(output(model), adapted)
    del layer
    unload_concept(model, "dog")
    wide = model.get_submodule("wide" if bare else "base_model.model.wide")
    assert type(wide) is nn.Linear
    unload_concept(model, "one")
    gc.collect()
    assert kept() is None
    assert torch.equal(output(model), output(make_two_layers()))
    assert not any(isinstance(m, LoLDULayer) for m in model.modules())
    load_concept(model, paths["dog"], "dog")
    assert torch.equal(output(model), output(build(make_two_layers, "dog")))
    refuse("'dog' is already loaded", load_concept, model, paths["svd"], "dog")
    unload_concept(model, "dog")
    load_concept(model, paths["svd"], "other")
    assert torch.equal(output(model), output(build(make_two_layers, "svd")))
    assert list(model.peft_config) == ["other"]


def test_unloading_an_active_adapter_makes_no_other_one_active(
    make_two_layers: MakeModel,
) -> None:
    model = build(make_two_layers, "dog", "toy", "one")
    mix(model, {"dog": 1.0, "one": 1.0})
    unload_concept(model, "one")
    assert torch.equal(output(model), output(build(make_two_layers, "dog")))
    unload_concept(model, "dog")
    assert model.active_adapters == []
    assert torch.equal(output(model), output(make_two_layers()))


def test_unloading_leaves_a_lora_beneath(make_two_layers: MakeModel, tmp_path: Path) -> None:
    path = save_concept(build(make_two_layers, "dog"), tmp_path / "dog", "dog")
    lora = LoraConfig(r=2, target_modules=["tall"], init_lora_weights=False)
    model = get_peft_model(make_two_layers(), lora, "style").get_base_model()
    before = output(model)
    load_concept(model, path, "dog")
    assert not torch.equal(output(model), before)
    unload_concept(model, "dog")
    assert torch.equal(output(model), before)
    assert list(model.peft_config) == ["style"]


def test_a_weighted_adapter_holds_the_sum_exactly(
    make_two_layers: MakeModel, tmp_path: Path
) -> None:
    model = build(make_two_layers, "dog", "toy", "svd")
    weights = {"toy": 2.0, "dog": -0.5}
    expected = output(merged_by_hand(make_two_layers, model, weights))
    set_strength(model, 0.1)
    trained = [p for p in model.parameters() if p.requires_grad]
    model.add_weighted_adapter([*weights], [*weights.values()], "sum")
    assert model.active_adapters == ["dog"]
    assert [p for p in model.parameters() if p.requires_grad] == trained
    model.set_adapter("sum")
    torch.testing.assert_close(output(model), expected)
    assert {layer.r["sum"] for layer in model.modules() if isinstance(layer, LoLDULayer)} == {6}
    path = save_concept(model, tmp_path / "sum", "sum")
    fresh = make_two_layers()
    load_concept(fresh, path)
    assert torch.equal(output(fresh), output(model))


def test_weighted_sums_that_one_adapter_cannot_hold_are_refused(
    make_two_layers: MakeModel,
) -> None:
    model = build(make_two_layers, *KINDS)
    before = output(model)
    for adapters, weights, name, message in (
        (["dog", "svd"], [1.0, 1.0], "sum", "dog, svd do not share factors in layer 'wide'"),
        (["dog", "one"], [1.0, 1.0], "sum", "dog, one do not share factors in layer 'tall'"),
        (["dog", "cat"], [1.0, 1.0], "sum", "Adapter cat does not exist"),
        (["dog", "toy"], [1.0, 1.0], "toy", "'toy' exists: choose another"),
        (["dog", "toy"], [1.0], "sum", "a finite weight for each"),
        (["dog"], [float("nan")], "sum", "a finite weight for each"),
        ([], [], "sum", "a finite weight for each"),
    ):
        with pytest.raises(ValueError, match=message):
            model.add_weighted_adapter(adapters, weights, name)
    assert list(model.peft_config) == list(KINDS)
    assert torch.equal(output(model), before)
