import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from loldu.functional import adapted_linear, factored_update


def operands(
    tokens: int, r: int, shape: tuple[int, int] = (10, 14), dtype: torch.dtype = torch.float64
) -> tuple[Tensor, nn.Linear, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens * 100 + r)

    def gaussian(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64).to(dtype)

    layer = nn.Linear(shape[1], shape[0]).to(dtype).requires_grad_(False)
    layer.weight.copy_(gaussian(*shape))
    layer.bias.copy_(gaussian(shape[0]))
    return (
        gaussian(2, tokens, shape[1]),
        layer,
        gaussian(shape[0], r),
        gaussian(r),
        gaussian(r, shape[1]),
    )


def dense_reference(
    x: Tensor, layer: nn.Linear, left: Tensor, delta: Tensor, right: Tensor
) -> Tensor:
    return x @ (layer.weight + left @ torch.diag(delta) @ right).T + layer.bias


def test_gradcheck() -> None:
    x, layer, left, delta, right = operands(3, 4)
    x.requires_grad_()
    delta.requires_grad_()
    output = layer(x).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y, delta: factored_update(x, y, left, delta, right), (x, output, delta)
    )


@pytest.mark.parametrize("shape", [(4, 14), (4, 3, 14), (4, 2, 3, 14)], ids=str)
def test_gradcheck_of_a_delta_for_every_row(shape: tuple[int, ...]) -> None:
    _, layer, left, _, right = operands(3, 5)
    generator = torch.Generator().manual_seed(1)
    x, delta = (
        torch.randn(*size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in (shape, (4, 5))
    )
    output = layer(x).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x, y, delta: factored_update(x, y, left, delta, right), (x, output, delta)
    )
    expected = torch.stack([dense_reference(x[i], layer, left, delta[i], right) for i in range(4)])
    torch.testing.assert_close(adapted_linear(x, layer, left, delta, right), expected)


def test_a_row_of_zeros_adds_nothing_to_any_bit() -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, layer, left, delta, right = operands(33, 5, dtype=dtype)
        rows = torch.stack([delta, 0 * delta]).float()
        y = adapted_linear(x, layer, left, rows, right)
        assert torch.equal(y[1], layer(x)[1])
        assert not torch.equal(y[0], layer(x)[0])


@given(tokens=st.integers(1, 64), r=st.integers(1, 10), trains=st.booleans())
@settings(max_examples=40, deadline=None)
def test_every_route_is_the_dense_formula(tokens: int, r: int, trains: bool) -> None:
    x, layer, left, delta, right = operands(tokens, r)
    expected_x, expected_delta = x.clone().requires_grad_(), delta.clone().requires_grad_()
    expected = dense_reference(expected_x, layer, left, expected_delta, right)
    expected.square().sum().backward()
    x.requires_grad_(trains)
    delta.requires_grad_(trains)
    for route in (adapted_linear, lambda x, layer, *rest: factored_update(x, layer(x), *rest)):
        y = route(x, layer, left, delta, right)
        torch.testing.assert_close(y, expected.detach(), check_dtype=True)
        if trains:
            x.grad = delta.grad = None
            y.square().sum().backward()
            torch.testing.assert_close(x.grad, expected_x.grad)
            torch.testing.assert_close(delta.grad, expected_delta.grad)


def calls_base(x: Tensor, layer: nn.Linear, *rest: Tensor) -> bool:
    """Whether the base layer was asked for its own output, which only the dense route avoids."""
    called = []
    layer.forward = lambda x: called.append(True) or nn.Linear.forward(layer, x)
    adapted_linear(x, layer, *rest)
    return bool(called)


def test_dense_route_is_taken_when_it_multiplies_less() -> None:
    # Sampling: dense pays off beyond mn / (m + n) = 5.8 tokens, whatever the rank.
    assert calls_base(*operands(1, 8))
    assert not calls_base(*operands(16, 8))
    # Training at low rank: the full weight gradient outweighs two thin products.
    x, layer, left, delta, right = operands(64, 1)
    assert calls_base(x, layer, left, delta.requires_grad_(), right)
    x, layer, left, delta, right = operands(64, 10)
    assert not calls_base(x, layer, left, delta.requires_grad_(), right)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_never_rounds_delta_into_the_weight(dtype: torch.dtype) -> None:
    assert calls_base(*operands(16, 8, dtype=dtype))
    with torch.autocast("cpu", torch.bfloat16):
        assert calls_base(*operands(16, 8, dtype=torch.float32))


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
    x, layer, left, delta, right = operands(5, 4)
    expected = dense_reference(x, layer, left, delta, right)
    y = adapted_linear(x.to(dtype), layer.to(dtype), left.to(dtype), delta.float(), right.to(dtype))
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
    x, layer, left, delta, right = operands(7, 2)
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        adapted_linear(x.requires_grad_(), layer, left, delta.requires_grad_(), right)
    known = {t.data_ptr() for t in (left, delta, right, layer.weight)}
    activations = [t for t in saved if t.data_ptr() not in known]
    assert [tuple(t.shape) for t in activations] == [(14, 2)]
