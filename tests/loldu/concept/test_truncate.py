"""Truncation of a trained concept, against dense least squares in float64."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loldu import (
    ConceptError,
    LoLDUConfig,
    ldu,
    load_concept,
    mix,
    read_concept,
    save_concept,
    set_strength,
    svd,
    truncate,
    unload_concept,
)
from loldu.adapter.diagonal import gram
from loldu.adapter.layer import LoLDULayer
from loldu.concept.truncate import nearest

MakeModel = Callable[..., nn.Module]
MakeUNet = Callable[..., UNet2DConditionModel]
TARGETS = ["wide", "tall"]
X = torch.randn(6, 24, generator=torch.Generator().manual_seed(0))


def adapted(make: MakeModel, **options: object) -> PeftModel:
    config = {"r": 8, "alpha": 3.0, "target_modules": TARGETS, "init_weights": False}
    model = get_peft_model(make(), LoLDUConfig(**config | options)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".ds"):
                parameter.fill_(0.3)
    return model


def layers_of(model: nn.Module) -> dict[str, LoLDULayer]:
    return {m.layer_name: m for m in model.modules() if isinstance(m, LoLDULayer)}


def directions(weight: Tensor, r: int, **options: str) -> tuple[np.ndarray, np.ndarray]:
    """B and A of a weight, in float64."""
    if options.pop("factorization", "ldu") == "svd":
        factors = svd(weight, r)
    else:
        factors = ldu(weight, r, **options)
    return factors.left.double().numpy(), factors.right.double().numpy()


def dense_fit(left: np.ndarray, right: np.ndarray, delta: np.ndarray, r: int) -> np.ndarray:
    """Return the weight nearest to B diag(delta) A within the first r directions."""
    columns = np.stack([np.outer(left[:, i], right[i]).ravel() for i in range(len(delta))], 1)
    fit = np.linalg.lstsq(columns[:, :r], columns @ delta, rcond=None)[0]
    return (columns[:, :r] @ fit).reshape(len(left), -1)


KINDS = [
    {},
    {"pivoting": "complete"},
    {"factorization": "svd"},
    {"residual": "perturb", "diagonal_init": "standard_normal"},
    {"train_scale": False},
]


@pytest.mark.parametrize("r", [1, 3, 7])
@pytest.mark.parametrize("options", KINDS, ids=str)
def test_truncation_is_the_dense_least_squares_fit_and_returns_its_error(
    make_two_layers: MakeModel, options: dict[str, str], r: int
) -> None:
    model = adapted(make_two_layers, **options)
    result = truncate(model, r)
    basis = {k: v for k, v in options.items() if k in ("pivoting", "factorization")}
    lost, whole = [], []
    for cut in result.layers:
        layer = layers_of(model)[cut.name]
        left, right = directions(layer.weight.data, 8, **basis)
        delta = layer.diagonal("default").delta().detach().double().numpy()
        dense = left * delta @ right
        fit = dense_fit(left, right, delta, r)
        now = layer.get_delta_weight("truncated").double().numpy()
        np.testing.assert_allclose(now, fit, atol=1e-6 * np.abs(dense).max())
        lost.append(np.linalg.norm(dense - fit))
        whole.append(np.linalg.norm(dense))
        assert cut.error == pytest.approx(lost[-1] / whole[-1], rel=1e-6)
        assert layer.r["truncated"] == cut.delta.numel() == r
    assert result.total == pytest.approx(np.hypot(*lost) / np.hypot(*whole), rel=1e-6)


def test_errors_near_zero_are_exact_too(make_two_layers: MakeModel) -> None:
    model = adapted(make_two_layers, train_scale=False)
    wide = layers_of(model)["wide"]
    with torch.no_grad():
        wide.diagonal("default").dz[5:] *= 1e-6
    cut = truncate(model, 5).layers[0]
    left, right = directions(wide.weight.data, 8)
    delta = wide.diagonal("default").delta().detach().double().numpy()
    dense = left * delta @ right
    fitted = np.pad(cut.delta.double().numpy(), (0, 3))
    lost = np.linalg.norm(left * (delta - fitted) @ right)  # no difference of large numbers
    assert 1e-8 < cut.error < 1e-5
    assert cut.error == pytest.approx(lost / np.linalg.norm(dense), rel=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(1, 8), st.lists(st.booleans(), min_size=8, max_size=8), st.integers(0, 99))
def test_dependent_and_dropped_directions_are_tolerated(
    r: int, dropped: list[bool], seed: int
) -> None:
    generator = np.random.default_rng(seed)
    left, right = generator.normal(size=(7, 8)), generator.normal(size=(8, 6))
    left[:, dropped], right[dropped] = 0, 0
    left[:, 3], right[3] = 2 * left[:, 1], right[1] / 2  # the same direction twice
    delta = generator.normal(size=8)
    metric = gram(torch.from_numpy(left), torch.from_numpy(right))
    fitted = nearest(torch.from_numpy(delta), metric, r).numpy()
    np.testing.assert_allclose(
        left[:, :r] * fitted @ right[:r], dense_fit(left, right, delta, r), atol=1e-8
    )


def test_the_whole_rank_is_the_same_to_the_bit(make_two_layers: MakeModel) -> None:
    model = adapted(make_two_layers)
    result = truncate(model, 50)
    assert (result.total, [cut.error for cut in result.layers]) == (0, [0, 0])
    for layer in layers_of(model).values():
        delta = layer.diagonal("default").delta()
        assert torch.equal(layer.diagonal("truncated").delta(), delta)


def test_the_smallest_rank_within_an_error(make_two_layers: MakeModel) -> None:
    model = adapted(make_two_layers, r=12)
    errors = {}
    for r in range(1, 13):
        for cut in truncate(model, r).layers:
            errors[cut.name, r] = cut.error
        unload_concept(model, "truncated")
    assert all(errors[n, r + 1] <= errors[n, r] for n, r in errors if r < 12)
    for bound in (0.9, 0.4, 0.1, 0.0):
        result = truncate(model, max_error=bound)
        for cut in result.layers:
            r = cut.delta.numel()
            assert cut.error == errors[cut.name, r] <= bound
            assert r == 1 or errors[cut.name, r - 1] > bound
        assert result.total <= bound
        unload_concept(model, "truncated")


def test_the_old_adapter_stays_and_factors_are_shared(
    make_two_layers: MakeModel, tmp_path: Path
) -> None:
    model = adapted(make_two_layers)
    set_strength(model, 0.5)
    with torch.no_grad():
        before = model(X)
        truncate(model, 3, new_name="small")
        assert model.active_adapters == ["small"]
        small = model(X)
        for layer in layers_of(model).values():
            assert layer.factors["small"] is layer.factors["default"]
            assert layer.strength == {"default": 0.5, "small": 0.5}
        assert not torch.equal(small, before)
        path = save_concept(model, tmp_path / "small.safetensors", "small")
        assert [layer.delta.numel() for layer in read_concept(path).layers] == [3, 3]
        fresh = make_two_layers()
        load_concept(fresh, path, strength=0.5)
        torch.testing.assert_close(fresh(X), small)
        model.set_adapter("default")
        assert torch.equal(model(X), before)
        unload_concept(model, "default")
        mix(model, {"small": 0.5})
        assert torch.equal(model(X), small)


def test_a_pipeline_is_truncated_in_every_component(make_unet: MakeUNet) -> None:
    unet, other = make_unet(), make_unet(seed=1)
    unet.add_adapter(LoLDUConfig(r=8, init_weights=False))
    other.add_adapter(LoLDUConfig(r=4, init_weights=False, target_modules=["to_q"]))
    parts = {"unet": unet, "transformer": other, "scheduler": object()}
    result = truncate(SimpleNamespace(components=parts), 2)
    assert {cut.component for cut in result.layers} == {"unet", "transformer"}
    assert 0 < result.of("unet").total != result.of("transformer").total > 0
    for layer in [*layers_of(unet).values(), *layers_of(other).values()]:
        assert layer.active_adapters == ["truncated"]
        assert layer.r["truncated"] == 2


def test_a_half_precision_base(make_two_layers: MakeModel) -> None:
    model = adapted(make_two_layers).to(torch.bfloat16)
    result = truncate(model, 4)
    for cut in result.layers:
        layer = layers_of(model)[cut.name]
        whole, now = (layer.get_delta_weight(n).double() for n in ("default", "truncated"))
        assert cut.error == pytest.approx(float((whole - now).norm() / whole.norm()), rel=1e-5)


def test_an_adapter_without_a_change(make_two_layers: MakeModel) -> None:
    model = adapted(make_two_layers, init_weights=True, train_scale=False)
    result = truncate(model, max_error=0.1)
    assert result.total == 0
    assert [cut.delta.tolist() for cut in result.layers] == [[0], [0]]


def test_leading_zero_pivots_are_kept_with_the_first_that_is_not(
    make_two_layers: MakeModel,
) -> None:
    def make() -> nn.Module:
        model = make_two_layers()
        with torch.no_grad():
            model.wide.weight[:, :2] = 0
        return model

    with pytest.warns(UserWarning, match="2 of 8 directions have a zero pivot"):
        model = adapted(make)
    with pytest.raises(ConceptError, match=r"first 2 pivots of layer 'wide' are zero: keep .* 3 "):
        truncate(model, 2)
    assert [cut.delta.numel() for cut in truncate(model, max_error=1.0).layers] == [3, 1]


def test_an_adapter_that_cannot_be_truncated_is_reported_and_unchanged(
    make_two_layers: MakeModel,
) -> None:
    model = adapted(make_two_layers)
    for message, arguments in {
        "either r or max_error": {},
        "either r or max_error: ": {"r": 2, "max_error": 0.1},
        "r must be a positive": {"r": 0},
        "max_error must be": {"max_error": float("nan")},
        "no LoLDU adapter named 'dog'": {"r": 2, "adapter_name": "dog"},
        "'default' is already loaded": {"r": 2, "new_name": "default"},
    }.items():
        with pytest.raises(ConceptError, match=message):
            truncate(model, **arguments)
    assert list(model.peft_config) == ["default"]
    with pytest.raises(ConceptError, match="also trains head in full"):
        truncate(adapted(make_two_layers, modules_to_save=["head"]), 2)
    layers_of(model)["tall"].diagonal("default").dz.data[0] = torch.nan
    with pytest.raises(ConceptError, match="layer 'tall' is not finite"):
        truncate(model, 2)
    assert list(model.peft_config) == ["default"]
