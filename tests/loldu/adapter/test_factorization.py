import doctest
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from loldu import ldu, svd


def reference_ldu(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Full LDU with partial pivoting, from LAPACK's dense LU."""
    permutation, lower, upper = torch.linalg.lu(weight.double())
    d = upper.diagonal()
    return permutation @ lower, d, upper[: len(d)] / d[:, None], permutation.argmax(0)


def gaussian(rows: int, columns: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(40, 40), (70, 30), (30, 70), (5, 1), (1, 5)])
@pytest.mark.parametrize("r", [1, 7, 1000])
def test_ldu_is_the_leading_part_of_the_full_lu(shape: tuple[int, int], r: int) -> None:
    weight = gaussian(*shape)
    left, diagonal, right, rows = reference_ldu(weight)
    factors = ldu(weight, r)
    k = min(r, *shape)
    assert factors.pivots.tolist() == rows[:k].tolist()
    torch.testing.assert_close(factors.left.double(), left[:, :k], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(factors.diagonal.double(), diagonal[:k], rtol=1e-6, atol=0)
    torch.testing.assert_close(factors.right.double(), right[:k], rtol=1e-6, atol=1e-6)


def test_given_pivots_in_an_order_that_lapack_would_change() -> None:
    # An LDU without pivoting, for which every leading block of the reordered weight must be
    # regular; it is large enough to be eliminated in halves.
    order = torch.randperm(200, generator=torch.Generator().manual_seed(0))[:150]
    left = gaussian(200, 150, 1).double().tril(-1) / 50
    right = gaussian(150, 170, 2).double().triu(1) / 50
    left.diagonal().fill_(1)
    right.diagonal().fill_(1)
    diagonal = 1 + torch.arange(150.0, dtype=torch.float64).remainder(7)
    rows = torch.cat([order, torch.tensor([y for y in range(200) if y not in set(order.tolist())])])
    weight = torch.empty(200, 170, dtype=torch.float64)
    weight[rows] = (left * diagonal) @ right
    factors = ldu(weight, 150, pivots=order)
    torch.testing.assert_close(factors.left[rows].double(), left, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(factors.diagonal.double(), diagonal, rtol=1e-6, atol=0)
    torch.testing.assert_close(factors.right.double(), right, rtol=1e-6, atol=1e-7)


@given(
    rows=st.integers(1, 48),
    columns=st.integers(1, 48),
    pivoting=st.sampled_from(["partial", "complete"]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=40, deadline=None)
def test_full_rank_factors_multiply_to_the_weight(
    rows: int, columns: int, pivoting: str, seed: int
) -> None:
    weight = gaussian(rows, columns, seed)
    factors = ldu(weight, max(rows, columns), pivoting=pivoting)
    product = (factors.left.double() * factors.diagonal) @ factors.right.double()
    scale = weight.abs().max() * factors.right.abs().max()
    assert (product - weight).abs().max() <= 1e-5 * scale


@pytest.mark.parametrize("pivoting", ["partial", "complete"])
@given(small=st.integers(1, 39), seed=st.integers(0, 2**31))
@settings(max_examples=20, deadline=None)
def test_factors_are_nested(pivoting: str, small: int, seed: int) -> None:
    weight = gaussian(44, 40, seed)
    large = ldu(weight, 40, pivoting=pivoting)
    factors = ldu(weight, small, pivoting=pivoting)
    assert torch.equal(factors.pivots, large.pivots[..., :small])
    torch.testing.assert_close(factors.left, large.left[:, :small], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(factors.diagonal, large.diagonal[:small], rtol=1e-6, atol=0)
    torch.testing.assert_close(factors.right, large.right[:small], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("pivoting", ["partial", "complete"])
def test_given_pivots_reproduce_the_factors_bit_by_bit(pivoting: str) -> None:
    weight = gaussian(60, 50)
    made = ldu(weight, 20, pivoting=pivoting)
    loaded = ldu(weight, 20, pivots=made.pivots.to(torch.int32), pivoting="partial")
    assert torch.equal(made.left, loaded.left)
    assert torch.equal(made.diagonal, loaded.diagonal)
    assert torch.equal(made.right, loaded.right)


def test_given_pivots_survive_rounding_of_the_weight() -> None:
    weight = gaussian(256, 256)
    exact = ldu(weight, 256)
    rounded = weight.bfloat16()
    kept = ldu(rounded, 256, pivots=exact.pivots)
    sought = ldu(rounded, 256)
    delta = gaussian(1, 256)[0]

    def delta_weight(factors: object) -> Tensor:
        return (factors.left * delta) @ factors.right

    target = delta_weight(exact)
    error = (delta_weight(kept) - target).norm() / target.norm()
    error_without = (delta_weight(sought) - target).norm() / target.norm()
    assert not torch.equal(sought.pivots, exact.pivots)
    assert error < 0.3 * error_without


@pytest.mark.parametrize("r", [3, 20])
def test_complete_pivoting_takes_the_largest_remaining_entry(r: int) -> None:
    weight = gaussian(24, 20)
    rows, columns = ldu(weight, r, pivoting="complete").pivots
    rest = weight.double()
    for row, column in zip(rows.tolist(), columns.tolist(), strict=True):
        assert rest[row, column].abs() == rest.abs().max()
        rest = rest - torch.outer(rest[:, column], rest[row]) / rest[row, column]
        rest[row], rest[:, column] = 0, 0


def test_complete_pivoting_bounds_both_factors() -> None:
    factors = ldu(gaussian(64, 48), 48, pivoting="complete")
    assert factors.left.abs().max() <= 1
    assert factors.right.abs().max() <= 1


def test_a_zero_pivot_drops_its_direction_and_keeps_the_others() -> None:
    weight = gaussian(20, 16)
    weight[:, 3] = weight[:, :3] @ torch.tensor([0.5, -2.0, 0.25])
    factors = ldu(weight, 8)
    left, _, right, _ = reference_ldu(weight)
    assert factors.diagonal[3] == 0
    assert not factors.left[:, 3].any()
    assert not factors.right[3].any()
    torch.testing.assert_close(factors.left[:, :3].double(), left[:, :3], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(factors.right[:3].double(), right[:3], rtol=1e-6, atol=1e-6)
    for part in (factors.left, factors.diagonal, factors.right):
        assert torch.isfinite(part).all()


def test_directions_after_a_zero_column_are_those_of_the_lu() -> None:
    weight = gaussian(20, 16)
    weight[:, 2] = 0
    factors = ldu(weight, 6)
    left, d, right, _ = reference_ldu(weight)
    kept = [0, 1, 3, 4, 5]
    torch.testing.assert_close(factors.left[:, kept].double(), left[:, kept], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(factors.diagonal[kept].double(), d[kept], rtol=1e-6, atol=0)
    torch.testing.assert_close(factors.right[kept].double(), right[kept], rtol=1e-6, atol=1e-6)
    assert factors.diagonal[2] == 0


def test_complete_pivoting_loses_no_direction_before_the_rank_is_used_up() -> None:
    weight = gaussian(20, 16)
    weight[:, :4] = 0
    assert (ldu(weight, 8).diagonal == 0).sum() == 4
    assert (ldu(weight, 8, pivoting="complete").diagonal != 0).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value: float) -> None:
    for place in ((1, 1), (int(gaussian(4, 4)[:, 0].abs().argmax()), 2)):
        weight = gaussian(4, 4)
        weight[place] = value
        with pytest.raises(ValueError, match="not finite"):
            ldu(weight, 2)
    with pytest.raises(ValueError, match="not finite"):
        svd(weight, 2)


@pytest.mark.parametrize(
    "pivots", [[0, 0], [0, 4], [-1, 0], [0], [[0, 1], [1, 1]], [[0, 1], [1, 9]]]
)
def test_pivots_that_do_not_fit_are_refused(pivots: list[int] | list[list[int]]) -> None:
    with pytest.raises(ValueError, match="pivots are not 2 distinct"):
        ldu(gaussian(4, 5), 2, pivots=torch.tensor(pivots))


@pytest.mark.parametrize("shape", [(30, 30), (40, 20), (20, 40)])
def test_svd_is_the_best_low_rank_approximation(shape: tuple[int, int]) -> None:
    weight = gaussian(*shape)
    values = torch.linalg.svdvals(weight.double())
    factors = svd(weight, 8)
    product = (factors.left.double() * factors.diagonal) @ factors.right.double()
    torch.testing.assert_close(factors.diagonal.double(), values[:8], rtol=1e-6, atol=0)
    assert (product - weight).norm() == pytest.approx(values[8:].norm().item(), rel=1e-6)
    torch.testing.assert_close(factors.left.T @ factors.left, torch.eye(8), atol=1e-6, rtol=0)
    assert (factors.left.gather(0, factors.left.abs().argmax(0)[None]) > 0).all()
    assert factors.pivots is None


def test_half_precision_weights_are_factored_as_they_stand() -> None:
    weight = gaussian(16, 16).half()
    assert torch.equal(ldu(weight, 4).left, ldu(weight.float(), 4).left)
    assert ldu(weight, 4).right.dtype == torch.float32


def test_the_example_worked_by_hand_in_the_documentation_holds() -> None:
    page = Path(__file__).parents[3] / "docs" / "adapter.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted == page.read_text(encoding="utf-8").count(">>> ") > 0
    assert result.failed == 0
