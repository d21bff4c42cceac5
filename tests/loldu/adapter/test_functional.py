from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from loldu import ldu
from loldu.adapter.functional import adapted_linear, cheapest_route, factored_update
from loldu.adapter.shared_factors import SharedFactors


def operands(
    tokens: int,
    r: int,
    shape: tuple[int, int] = (10, 14),
    dtype: torch.dtype = torch.float64,
    *,
    bias: bool = True,
) -> tuple[Tensor, nn.Linear, SharedFactors, Tensor]:
    generator = torch.Generator().manual_seed(tokens * 100 + r)

    def gaussian(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    layer = nn.Linear(shape[1], shape[0], bias=bias).to(dtype).requires_grad_(False)
    layer.weight.copy_(gaussian(*shape))
    if bias:
        layer.bias.copy_(gaussian(shape[0]))
    return gaussian(2, tokens, shape[1]), layer, factors_of(layer.weight, r), gaussian(r)


def factors_of(weight: Tensor, r: int) -> SharedFactors:
    return SharedFactors.of(ldu(weight, r), "partial", weight.dtype)


def dense_reference(x: Tensor, layer: nn.Linear, factors: SharedFactors, delta: Tensor) -> Tensor:
    left, delta, right = factors.around(delta)
    weight = layer.weight + left @ torch.diag(delta) @ right
    return x @ weight.T + (0 if layer.bias is None else layer.bias)


def update(x: Tensor, base_output: Tensor, factors: SharedFactors, delta: Tensor) -> Tensor:
    return factored_update(x, base_output, *factors.around(delta))


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("tokens", [1, 3])
def test_gradients(check: Callable[..., bool], tokens: int) -> None:
    x, layer, factors, delta = operands(tokens, 4)
    x.requires_grad_()
    delta.requires_grad_()
    output = layer(x).detach().requires_grad_()
    assert check(lambda x, y, delta: update(x, y, factors, delta), (x, output, delta))
    assert check(lambda x, delta: adapted_linear(x, layer, factors, delta), (x, delta))


@pytest.mark.parametrize("check", [torch.autograd.gradcheck, torch.autograd.gradgradcheck])
@pytest.mark.parametrize("shape", [(4, 14), (4, 2, 14), (4, 2, 2, 14)], ids=str)
def test_gradients_of_a_delta_for_every_row(
    check: Callable[..., bool], shape: tuple[int, ...]
) -> None:
    _, layer, factors, _ = operands(3, 5)
    generator = torch.Generator().manual_seed(1)
    x, delta = (
        torch.randn(*size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in (shape, (4, 5))
    )
    output = layer(x).detach().requires_grad_()
    assert check(lambda x, y, delta: update(x, y, factors, delta), (x, output, delta))
    assert check(lambda x, delta: adapted_linear(x, layer, factors, delta), (x, delta))
    expected = torch.stack([dense_reference(x[i], layer, factors, delta[i]) for i in range(4)])
    torch.testing.assert_close(adapted_linear(x, layer, factors, delta), expected)


@pytest.mark.parametrize("shape", [(10, 14), (200, 300)])
def test_a_row_of_zeros_adds_nothing_to_any_bit(shape: tuple[int, int]) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, layer, factors, delta = operands(33, 5, shape, dtype=dtype)
        rows = torch.stack([delta, 0 * delta]).float()
        y = adapted_linear(x, layer, factors, rows)
        assert torch.equal(y[1], layer(x)[1])
        assert not torch.equal(y[0], layer(x)[0])


@given(tokens=st.integers(1, 64), r=st.integers(1, 10), trains=st.booleans(), bias=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_route_is_the_dense_formula(tokens: int, r: int, trains: bool, bias: bool) -> None:
    x, layer, factors, delta = operands(tokens, r, bias=bias)
    expected_x, expected_delta = x.clone().requires_grad_(), delta.clone().requires_grad_()
    expected = dense_reference(expected_x, layer, factors, expected_delta)
    expected.square().sum().backward()
    x.requires_grad_(trains)
    delta.requires_grad_(trains)
    for route in (adapted_linear, lambda x, layer, *rest: update(x, layer(x), *rest)):
        y = route(x, layer, factors, delta)
        torch.testing.assert_close(y, expected.detach(), check_dtype=True)
        if trains:
            x.grad = delta.grad = None
            y.square().sum().backward()
            torch.testing.assert_close(x.grad, expected_x.grad)
            torch.testing.assert_close(delta.grad, expected_delta.grad)


def route_of(x: Tensor, layer: nn.Linear, factors: SharedFactors, delta: Tensor) -> str:
    return cheapest_route(x, factors, delta)


def test_the_dense_route_is_taken_when_it_multiplies_less() -> None:
    # Sampling: dense pays off beyond mn / (m + n) = 5.8 tokens, whatever the rank.
    assert route_of(*operands(1, 8)) == "factored"
    assert route_of(*operands(16, 8)) == "dense"
    # Training at low rank: the full weight gradient outweighs two thin products.
    x, layer, factors, delta = operands(64, 1)
    assert route_of(x, layer, factors, delta.requires_grad_()) == "factored"
    x, layer, factors, delta = operands(64, 10)
    assert route_of(x, layer, factors, delta.requires_grad_()) == "dense"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_never_rounds_delta_into_the_weight(dtype: torch.dtype) -> None:
    assert route_of(*operands(16, 8, dtype=dtype)) == "factored"


WIDE = (96, 1600)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("worst", ["dependent", "weak"])
def test_columns_that_would_lose_digits_keep_them(dtype: torch.dtype, worst: str) -> None:
    x, layer, _, delta = operands(40, 48, WIDE, dtype=torch.float32, bias=False)
    if worst == "dependent":
        layer.weight[:, 5] = layer.weight[:, 4] + 0.01 * layer.weight[:, 5]
    else:
        layer.weight[:, 5] *= 1e-3
    layer.to(dtype)
    factors, x, delta = factors_of(layer.weight, 48), x.to(dtype), 0.05 * delta.float()
    y, y0 = adapted_linear(x, layer, factors, delta), layer(x).double()
    reference = factors_of(layer.weight.double(), 48)
    expected = dense_reference(x.double(), layer.double(), reference, delta.double())
    update = expected - x.double() @ layer.weight.T
    error = (y.double() - y0 - update).norm() / update.norm()
    assert error <= {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 2e-5}[dtype]


def test_a_weight_that_has_changed_leaves_the_update_of_its_old_factors() -> None:
    x, layer, factors, delta = operands(40, 48, WIDE)
    change = adapted_linear(x, layer, factors, delta) - layer(x)
    layer.weight.mul_(1.5)
    torch.testing.assert_close(
        adapted_linear(x, layer, factors, delta) - layer(x), change, rtol=1e-4, atol=1e-3
    )


def test_autocast_rounds_nothing_between_an_output_and_its_update() -> None:
    x, layer, factors, delta = operands(40, 48, WIDE, dtype=torch.bfloat16, bias=False)
    expected = adapted_linear(x, layer, factors, delta.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adapted_linear(x, layer, factors, delta.float()), expected)


def test_only_a_plain_layer_goes_without_a_call(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[nn.Linear] = []
    forward = nn.Linear.forward
    monkeypatch.setattr(nn.Linear, "forward", lambda y, x: called.append(y) or forward(y, x))

    def calls_base(x: Tensor, layer: nn.Linear, factors: SharedFactors, delta: Tensor) -> bool:
        called.clear()
        adapted_linear(x, layer, factors, delta)
        return called == [layer]

    x, layer, *rest = operands(16, 8)
    assert not calls_base(x, layer, *rest)
    layer.weight.requires_grad_()
    assert calls_base(x, layer, *rest)
    x, layer, *rest = operands(16, 8)
    layer.forward = partial(nn.Linear.forward, layer)
    assert calls_base(x, layer, *rest)
    with torch.autocast("cpu", torch.bfloat16):
        assert calls_base(*operands(16, 8, dtype=torch.float32))
        x, *rest = operands(16, 8, dtype=torch.bfloat16)
        assert not calls_base(x.float(), *rest)


def test_a_trained_base_layer_gets_its_gradient() -> None:
    x, layer, factors, delta = operands(16, 8)
    layer.requires_grad_()
    adapted_linear(x, layer, factors, delta).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.sum((0, 1)).expand_as(layer.weight))


def test_a_layer_with_hooks_is_called() -> None:
    x, layer, *rest = operands(16, 8)
    layer.register_forward_hook(lambda module, inputs, output: output + 1)
    torch.testing.assert_close(
        adapted_linear(x, layer, *rest), dense_reference(x, layer, *rest) + 1
    )


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 4e-2), (torch.float16, 5e-3)]
)
def test_lower_precision_agrees_with_float64(dtype: torch.dtype, tolerance: float) -> None:
    x, layer, factors, delta = operands(5, 4)
    expected = dense_reference(x, layer, factors, delta)
    factors = factors.to(x.device, dtype)
    y = adapted_linear(x.to(dtype), layer.to(dtype), factors, delta.float())
    assert y.dtype == dtype
    assert (y.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_gradient_of_delta_is_summed_in_float32() -> None:
    # 4096 equal terms: a bfloat16 running sum would stop growing at 256.
    x = torch.ones(4096, 1, dtype=torch.bfloat16)
    delta = torch.zeros(1, requires_grad=True)
    one = torch.ones(1, 1, dtype=torch.bfloat16)
    factored_update(x, torch.zeros_like(x), one, delta, one).sum().backward()
    assert delta.grad.item() == 4096


def test_backward_saves_only_the_low_rank_activation() -> None:
    x, layer, factors, delta = operands(7, 2)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        adapted_linear(x.requires_grad_(), layer, factors, delta.requires_grad_())
    known = {t.data_ptr() for t in (factors.left, factors.right, factors.gain, layer.weight)}
    activations = [t for t in saved if t.data_ptr() not in known]
    assert sorted(tuple(t.shape) for t in activations) == [(2,), (14, 2)]


def test_dropout_drops_entries_of_the_low_rank_activation() -> None:
    x, layer, factors, delta = operands(200, 4)
    torch.manual_seed(0)
    y = factored_update(x, layer(x), *factors.around(delta), dropout=0.25)
    # Least squares on B gives back what came through, entry by entry.
    left, gained, right = factors.around(delta)
    through = torch.linalg.lstsq(left, (y - layer(x)).reshape(-1, 10).T).solution.T
    share = through / ((x.reshape(-1, 14) @ right.T) * gained)
    dropped = share.abs() < 1e-6
    assert 0.2 < dropped.double().mean() < 0.3
    torch.testing.assert_close(share[~dropped], torch.full_like(share[~dropped], 4 / 3))
