import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loldu import ldu
from loldu.adapter.diagonal import (
    DIAGONAL_INITS,
    LoLDUDiagonal,
    delta_norm,
    gram,
    initial_diagonal,
    layer_generator,
    projection_factor,
)

D = torch.linspace(-1.0, 3.0, 4001)


def draw(init: str, d: Tensor = D, seed: int = 0) -> Tensor:
    return initial_diagonal(init, d, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("init", "expected"), [("ldu", D), ("constant", D.mean()), ("zeros", 0.0), ("ones", 1.0)]
)
def test_fixed_initial_values(init: str, expected: Tensor | float) -> None:
    torch.testing.assert_close(draw(init), torch.as_tensor(expected).expand_as(D))


@pytest.mark.parametrize(
    ("init", "mean", "std", "bound"),
    [
        ("uniform", 0.0, D.mean().item() / 2 / 3**0.5, D.mean().item() / 2),
        ("normal", D.mean().item(), D.std().item(), float("inf")),
        ("standard_uniform", 0.0, 1 / 3**0.5, 1.0),
        ("standard_normal", 0.0, 1.0, float("inf")),
    ],
)
def test_random_initial_values_follow_their_distribution(
    init: str, mean: float, std: float, bound: float
) -> None:
    values = draw(init)
    assert values.mean().item() == pytest.approx(mean, abs=5 * std / len(D) ** 0.5)
    assert values.std().item() == pytest.approx(std, rel=0.05)
    assert values.abs().max() <= bound


@pytest.mark.parametrize("init", DIAGONAL_INITS)
def test_initial_values_of_one_direction_and_of_dropped_ones(init: str) -> None:
    assert torch.isfinite(draw(init, torch.tensor([0.7]))).all()
    assert draw(init, torch.tensor([0.7, 0.0, -0.2]))[1] == 0


def test_draws_depend_on_seed_and_layer_only() -> None:
    torch.manual_seed(1)
    first = torch.rand(4, generator=layer_generator(0, "mid.to_q"))
    torch.manual_seed(2)
    assert torch.equal(first, torch.rand(4, generator=layer_generator(0, "mid.to_q")))
    assert not torch.equal(first, torch.rand(4, generator=layer_generator(0, "mid.to_k")))
    assert not torch.equal(first, torch.rand(4, generator=layer_generator(1, "mid.to_q")))


@given(seed=st.integers(0, 2**31), rows=st.integers(2, 20), columns=st.integers(2, 20))
@settings(max_examples=30, deadline=None)
def test_norm_is_that_of_the_dense_delta_weight(seed: int, rows: int, columns: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    factors = ldu(torch.randn(rows, columns, generator=generator), 20)
    delta = torch.randn(min(rows, columns), generator=generator)
    dense = (factors.left.double() * delta) @ factors.right.double()
    norm = delta_norm(delta, gram(factors.left, factors.right))
    assert norm.item() == pytest.approx(dense.norm().item(), rel=1e-6)


@given(radius=st.floats(1e-3, 1e3))
@settings(max_examples=30, deadline=None)
def test_projection_is_the_nearest_point_of_the_ball(radius: float) -> None:
    factors = ldu(torch.randn(9, 7, generator=torch.Generator().manual_seed(3)), 5)
    delta = torch.tensor([0.5, -1.0, 2.0, 0.1, 0.3])
    metric = gram(factors.left, factors.right)
    dense = (factors.left * delta) @ factors.right
    factor = projection_factor(delta, metric, radius)
    # The nearest point of a ball around 0 is the matrix itself inside, and radius away outside.
    nearest = dense if dense.norm() <= radius else dense / dense.norm() * radius
    torch.testing.assert_close(factor * dense, nearest, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("train_scale", [True, False])
@pytest.mark.parametrize("perturbs", [True, False])
@pytest.mark.parametrize("has_units", [True, False])
def test_shrink_scales_delta(train_scale: bool, perturbs: bool, has_units: bool) -> None:
    options = {"train_scale": train_scale, "perturbs": perturbs, "has_units": has_units}
    diagonal = LoLDUDiagonal(4, 0.5, factorization="partial", **options)
    with torch.no_grad():
        if diagonal.unit is not None:
            diagonal.unit.copy_(torch.tensor([0.1, 1.0, 0.5, 3.0]))
        for tensor in (*diagonal.parameters(), diagonal.z_ref, diagonal.perturbation):
            if tensor is not None:
                tensor.copy_(torch.linspace(-0.2, 0.4, tensor.numel()))
    before = diagonal.delta()
    diagonal.shrink(torch.tensor(0.25))
    torch.testing.assert_close(diagonal.delta(), 0.25 * before, atol=1e-7, rtol=1e-5)
    diagonal.set_delta(before)
    torch.testing.assert_close(diagonal.delta(), before, atol=1e-7, rtol=1e-5)


def test_delta_is_sigma_z_minus_its_start() -> None:
    diagonal = LoLDUDiagonal(
        3, 0.5, factorization="svd", train_scale=True, perturbs=True, has_units=True
    )
    z_0, d = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.3, 0.6, -0.9])
    dz, ds = torch.tensor([0.1, 0.2, -0.3]), 0.25
    with torch.no_grad():
        diagonal.z_ref.copy_(z_0)
        diagonal.perturbation.copy_(z_0 - d)
        diagonal.unit.copy_(torch.tensor([2.0, 4.0, 0.5]))
        diagonal.dz.copy_(dz / diagonal.unit)
        diagonal.ds.fill_(ds)
    torch.testing.assert_close(diagonal.delta(), (0.5 + ds) * (z_0 + dz) - 0.5 * d)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_diagonal_stays_float32(dtype: torch.dtype) -> None:
    options = {"train_scale": True, "perturbs": True, "has_units": True}
    diagonal = LoLDUDiagonal(3, 1.0, factorization="partial", **options)
    torch.nn.init.constant_(diagonal.dz, 0.1)
    diagonal.to(dtype)
    assert {p.dtype for p in diagonal.parameters()} == {torch.float32}
    assert torch.equal(diagonal.dz.data, torch.full((3,), 0.1))
