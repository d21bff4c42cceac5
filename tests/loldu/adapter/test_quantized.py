"""Adapters on quantized linear layers of bitsandbytes and torchao, on the CPU."""

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loldu import (
    ConceptError,
    LoLDUConfig,
    export_lora,
    load_concept,
    mix,
    save_concept,
    set_concepts,
    verify_concept,
)
from loldu.adapter.layer import LoLDULayer

# bitsandbytes rearranges 4-bit weights on some CPUs, and fails at other sizes.
IN, OUT, RANK = 128, 64, 6
X = torch.randn(5, IN, generator=torch.Generator().manual_seed(0))


class Model(nn.Module):
    """Return a quantized layer followed by a head in floating point."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        torch.manual_seed(1)
        self.head = nn.Linear(OUT, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x))


def plain(weight: Tensor | None = None) -> nn.Linear:
    """Return the layer to quantize, or one with another weight."""
    torch.manual_seed(0)
    layer = nn.Linear(IN, OUT)
    if weight is not None:
        layer.weight.data = weight.clone()
    return layer


def int8(weight: Tensor | None = None) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear8bitLt(IN, OUT, has_fp16_weights=False)
    layer.load_state_dict(plain(weight).state_dict())
    return layer.to("cpu")


def four_bits(weight: Tensor | None, nested: bool) -> nn.Module:
    bnb = pytest.importorskip("bitsandbytes")
    layer, base = bnb.nn.LinearNF4(IN, OUT, compress_statistics=nested), plain(weight)
    layer.weight.data, layer.bias = base.weight.data, base.bias
    return layer.to("cpu")


def nf4(weight: Tensor | None = None) -> nn.Module:
    return four_bits(weight, nested=False)


def nested(weight: Tensor | None = None) -> nn.Module:
    return four_bits(weight, nested=True)


def torchao(weight: Tensor | None = None) -> nn.Module:
    quantization = pytest.importorskip("torchao.quantization")
    holder = nn.Sequential(plain(weight))
    quantization.quantize_(holder, quantization.Int8WeightOnlyConfig())
    return holder[0]


Make = Callable[..., nn.Module]
KINDS = {"int8": int8, "nf4": nf4, "nested": nested, "torchao": torchao}


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    return KINDS[request.param]


@pytest.fixture(autouse=True)
def _their_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "MatMul8bitLt: inputs will be cast")
        yield


def dequantized(make: Make, weight: Tensor | None = None) -> Tensor:
    """Return W as the layer's outputs for the unit vectors."""
    layer = make(weight)
    if make is int8:
        # It rounds its input to 8 bits too, which would say nothing about W.
        return layer.weight.CB.float() * layer.weight.SCB[:, None] / 127
    with torch.no_grad():
        return (layer(torch.eye(IN)) - layer.bias).T.contiguous()


def adapt(model: nn.Module, *names: str, **options: object) -> PeftModel:
    changes = {"r": RANK, "target_modules": ["layer"], "init_weights": False} | options
    adapted = get_peft_model(model, LoLDUConfig(**changes), names[0])
    for seed, name in enumerate(names[1:], 1):
        adapted.add_adapter(name, LoLDUConfig(seed=seed, **changes))
    return adapted


def layer_of(model: PeftModel) -> LoLDULayer:
    return model.get_base_model().layer


def reference_delta(make: Make, model: PeftModel, name: str = "dog") -> Tensor:
    """``P L_r diag(delta) U_r`` of the dequantized weight, with the factors of LAPACK's LU."""
    permutation, lower, upper = torch.linalg.lu(dequantized(make).double())
    delta = layer_of(model).diagonal(name).delta().detach().double()
    r = len(delta)
    unit = upper[:r] / upper.diagonal()[:r, None]
    return ((permutation @ lower)[:, :r] * delta @ unit).float()


@torch.no_grad()
def output(model: nn.Module, x: Tensor = X, **options: object) -> Tensor:
    return model(x, **options)


def assert_close(actual: Tensor, expected: Tensor, tolerance: float = 1e-4) -> None:
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=tolerance)


def with_change(make: Make, change: Tensor) -> Tensor:
    """Return the head's output for the sum of the quantized base and the change."""
    model = Model(make())
    with torch.no_grad():
        return model.head(model.layer(X) + X @ change.T)


@pytest.mark.parametrize("options", [{}, {"factorization": "svd"}, {"pivoting": "complete"}])
def test_a_fresh_adapter_is_the_base_bit_by_bit(make: Make, options: dict[str, object]) -> None:
    model = adapt(Model(make()), "dog", init_weights=True, **options)
    assert torch.equal(output(model), output(Model(make())))


def test_the_factors_are_those_of_the_dequantized_weight(make: Make) -> None:
    model = adapt(Model(make()), "dog")
    change = reference_delta(make, model)
    assert_close(layer_of(model).get_delta_weight("dog"), change)
    assert_close(output(model), with_change(make, change))
    assert (output(model) - output(Model(make()))).abs().max() > 0.1


def test_the_base_is_never_rewritten(make: Make, tmp_path: Path) -> None:
    before = Model(make())
    model = adapt(Model(make()), "dog", "toy")
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    first = model(X).square().mean()
    for _ in range(5):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    assert model(X).square().mean() < 0.9 * first
    model.save_pretrained(tmp_path)
    with model.disable_adapter():
        assert torch.equal(output(model), output(before))
    assert torch.equal(output(model.unload()), output(before))


def test_gradients_pass_through_to_what_comes_before(make: Make) -> None:
    model = adapt(Model(make()), "dog", train_scale=False)
    x, again = X.clone().requires_grad_(), X.clone().requires_grad_()
    (model(x) ** 2).sum().backward()
    change, base = reference_delta(make, model), Model(make())
    (base.head(base.layer(again) + again @ change.T) ** 2).sum().backward()
    assert_close(x.grad, again.grad)


def test_mixtures_and_a_concept_for_every_row(make: Make) -> None:
    model = adapt(Model(make()), "dog", "toy")
    dog, toy = (reference_delta(make, model, name) for name in ("dog", "toy"))
    base = output(Model(make()))
    alone = {"dog": with_change(make, dog), "toy": with_change(make, toy)}
    set_concepts(model, ["dog", None, "toy", "toy", "dog"])
    expected = [alone["dog"][0], base[1], alone["toy"][2], alone["toy"][3], alone["dog"][4]]
    assert_close(output(model), torch.stack(expected))
    mix(model, {"dog": 0.7, "toy": -0.4})
    assert_close(output(model), with_change(make, 0.7 * dog - 0.4 * toy))


def test_saved_pivots_drive_the_factors(make: Make, tmp_path: Path) -> None:
    model = adapt(Model(make()), "dog", r=16)
    pivots = layer_of(model).diagonal("dog").pivots
    with torch.no_grad():
        pivots[:2] = pivots[:2].flip(0)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Model(make()), tmp_path / "dog", "dog").train()
    assert torch.equal(layer_of(loaded).factors_of("dog").pivots, pivots.long())
    assert torch.equal(output(loaded), output(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_concept_nearly_holds_on_the_unquantized_base(
    make: Make, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = adapt(Model(make()), "dog", r=16)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(Model(plain()).to(dtype), tmp_path / "dog", "dog")
    diagonal, here = layer_of(model).diagonal("dog"), layer_of(loaded)
    assert torch.equal(here.diagonal("dog").pivots, diagonal.pivots)
    expected = layer_of(model).get_delta_weight("dog")
    error = (here.get_delta_weight("dog") - expected).norm() / expected.norm()
    assert error < (0.5 if make in (nf4, nested) else 0.05)


def test_a_concept_fits_a_base_quantized_alike_and_no_other(make: Make, tmp_path: Path) -> None:
    model = adapt(Model(make()), "dog")
    with pytest.warns(UserWarning, match=r"quantized \((bnb|torchao).*write a LoRA with export_l"):
        path = save_concept(model, tmp_path / "dog.safetensors", "dog")
    fresh = Model(make())
    load_concept(fresh, path, "dog")
    assert torch.equal(output(fresh), output(model))
    verify_concept(fresh, path)
    for other in (Model(make(dequantized(make).roll(1, 0))), Model(plain())):
        with pytest.raises(ConceptError, match=r"'layer', .* \(perhaps it is quantized otherwise"):
            load_concept(other, path)


def test_an_exported_lora_works_on_the_plain_base(make: Make, tmp_path: Path) -> None:
    live = adapt(Model(make()), "dog")
    folder = export_lora(live, tmp_path / "dog", "peft")
    warnings.filterwarnings("ignore", "TorchaoLoraLinear was instantiated without")
    quantized = PeftModel.from_pretrained(Model(make()), folder).train()
    assert_close(output(quantized), output(live))
    base = Model(plain())
    expected = base.head(base.layer(X) + X @ reference_delta(make, live).T)
    assert_close(output(PeftModel.from_pretrained(base, folder)), expected.detach())


def test_merging_quantizes_again(make: Make) -> None:
    model = adapt(Model(make()), "dog")
    if make is torchao:
        with pytest.raises(ValueError, match=r"layer 'layer' is quantized \(torchao\).*not known"):
            model.merge_adapter()
        assert not layer_of(model).merged
        quantization = pytest.importorskip("torchao.quantization")
        config = quantization.Int8WeightOnlyConfig
        backend = layer_of(model).quantization_backend
        backend.get_apply_tensor_subclass, backend.supports_merge = config, True
    live, kept = output(model), layer_of(model).base_weight()
    factors = layer_of(model).factors_of("dog")
    expected = dequantized(make, kept + layer_of(model).get_delta_weight("dog"))
    with pytest.warns(UserWarning, match="merging rounds the changed weights to"):
        model.merge_adapter(safe_merge=True)
    assert_close(layer_of(model).get_base_weight(), expected)
    assert torch.equal(layer_of(model).base_weight(), kept)
    model.unmerge_adapter()
    assert layer_of(model).factors_of("dog") is factors
    assert (layer_of(model).base_weight() - kept).abs().max() <= 0.01 * kept.abs().max()
    assert_close(output(model), live, 0.03)


def test_copies_and_casts_leave_the_factors_in_place(make: Make) -> None:
    model = adapt(Model(make()), "dog")
    assert torch.equal(output(copy.deepcopy(model)), output(model))
    expected = layer_of(model).get_delta_weight("dog")
    model.to(torch.bfloat16)
    assert torch.equal(layer_of(model).get_delta_weight("dog"), expected)
    assert output(model, X.bfloat16()).isfinite().all()


def test_layers_that_are_not_quantized_yet_are_refused() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    for layer in (bnb.nn.LinearNF4(IN, OUT), bnb.nn.Linear8bitLt(IN, OUT)):
        with pytest.raises(TypeError, match=r"'layer' is not quantized yet.*: load the base"):
            adapt(Model(layer), "dog")


def test_other_quantizations_are_refused() -> None:
    layer = plain()
    layer.weight = nn.Parameter(torch.zeros(OUT, IN, dtype=torch.int8), requires_grad=False)
    with pytest.raises(
        TypeError, match=r"'layer' is quantized \(int8\) in a way .*: load the base"
    ):
        adapt(Model(layer), "dog")


def test_evaluation_on_the_cpu_does_not_spoil_later_factors(make: Make, tmp_path: Path) -> None:
    # bitsandbytes rearranges and rounds a 4-bit weight there, where the CPU multiplies in bfloat16.
    model = adapt(Model(make()), "dog").eval()
    output(model)
    assert_close(layer_of(model).base_weight().float(), dequantized(make), 2e-3)
    change = reference_delta(make, model)
    model.add_adapter("toy", LoLDUConfig(r=2 * RANK, target_modules=["layer"]))
    with torch.no_grad():
        layer_of(model).diagonal("toy").dz[:RANK] = layer_of(model).diagonal("dog").delta()
    assert_close(layer_of(model).get_delta_weight("toy"), change, 0.1)
    warnings.filterwarnings("ignore", "the base is quantized")
    load_concept(Model(make()), save_concept(model, tmp_path / "dog.safetensors", "dog"))


def test_however_many_tokens_the_base_computes_its_own_part(make: Make) -> None:
    x = torch.randn(400, IN, generator=torch.Generator().manual_seed(1))
    model, calls = adapt(Model(make()), "dog"), []
    layer_of(model).base_layer.forward = lambda x: calls.append(x) or torch.zeros(len(x), OUT)
    assert_close(output(layer_of(model), x), x @ reference_delta(make, model).T)
    assert len(calls) == 1
