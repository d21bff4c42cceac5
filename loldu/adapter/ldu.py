"""LoLDU's factors: a rank-r LDU from one panel and one triangular solve.

Everything is computed in float64 and rounded to float32, so that the same weight and the same
pivots give the same factors whatever the number of threads.
"""

# torch and peft are typed in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false
# pyright: reportUnknownArgumentType=false

from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loldu.adapter.factors import Factorization, Factors, require_finite, to_float64

Pivoting = Literal["partial", "complete"]

_BLOCK = 32


def ldu(
    weight: Float[Tensor, "out in"],
    r: int,
    *,
    pivots: Int[Tensor, " k"] | Int[Tensor, "2 k"] | None = None,
    pivoting: Pivoting = "partial",
) -> Factors:
    """Return the rank-r LDU factors of a weight: ``P W Q = L D U``, cut to r directions.

    ``B = (Pᵀ L)[:, :r]``, ``d = D[:r]``, ``A = (U Qᵀ)[:r]`` with L and U unit triangular. Only
    the r pivot columns are factorized (for partial pivoting the first r: no Q); the rest of U
    follows from one triangular solve. Factors are nested: those of a smaller rank are the leading
    columns and rows of these.

    A pivot that is zero, to the float32 rounding of the largest entry of the columns up to it,
    leaves nothing to divide by: its direction is dropped, that is, its column of B, entry of d and
    row of A are zero. Only the pivot rows and columns are read.

    Args:
        weight: The base weight W, any floating dtype.
        r: Number of directions, clamped to the smaller side of W.
        pivots: Pivots of an earlier factorization. With them nothing is searched for, so that a
            copy of W rounded to another dtype gets the same directions.
        pivoting: "partial" takes the first r columns in order and the best row for each, at
            the cost of one panel; "complete" takes the largest entry left in the whole matrix
            each time (better conditioned at low rank, r rank-one updates of the full weight).

    Raises:
        ValueError: If entries that are read are not finite, or the pivots do not fit the weight.

    Source: LoLDU, Eq. (1) and (3)-(5).
    """
    rank = min(r, *weight.shape)
    panel = None
    if pivots is not None:
        pivots = pivots.to(device="cpu", dtype=torch.int64)[..., :rank]
        for chosen, size, axis in zip(
            pivots.reshape(-1, pivots.shape[-1]), weight.shape, ("rows", "columns"), strict=False
        ):
            _require_distinct(chosen, rank, size, axis)
    elif pivoting == "complete":
        pivots = _complete_pivots(to_float64(weight), rank)
    else:
        panel = _panel(weight, slice(rank))
        pivots = _partial_pivots(panel)
    rows, columns = pivots if pivots.ndim == 2 else (pivots, slice(rank))
    if panel is None:
        panel = _panel(weight, columns)
    left, diagonal, right = _factors_at_pivots(panel, to_float64(weight[rows]), rows, columns)
    device = weight.device
    return Factors(
        left.to(device, torch.float32),
        diagonal.to(device, torch.float32),
        right.to(device, torch.float32),
        pivots,
    )


def _panel(
    weight: Float[Tensor, "out in"], columns: Int[Tensor, " r"] | slice
) -> Float[Tensor, "out r"]:
    # Column after column, as LAPACK wants it.
    return to_float64(weight[:, columns].T.contiguous()).T


def _require_distinct(pivots: Int[Tensor, " k"], rank: int, size: int, axis: str) -> None:
    in_range = bool(((pivots >= 0) & (pivots < size)).all())
    if not in_range or pivots.unique().numel() != rank:
        raise ValueError(f"the pivots are not {rank} distinct {axis} of a weight with {size}")


def _partial_pivots(panel: Float[Tensor, "out r"]) -> Int[Tensor, " r"]:
    """Pivot rows of the first r columns of a weight, by LAPACK's row interchanges."""
    # The checked lu_factor refuses zero pivots, which are dropped later.
    _, interchanges, _ = torch.linalg.lu_factor_ex(panel)
    from_zero: list[int] = (interchanges - 1).tolist()  # LAPACK counts from one.
    pivots: list[int] = []
    moved: dict[int, int] = {}
    for step, other in enumerate(from_zero):
        # The row that is at this step takes the place of the one that comes.
        pivots.append(moved.get(other, other))
        moved[other] = moved.get(step, step)
    return torch.tensor(pivots)


def _complete_pivots(weight: Float[Tensor, "out in"], rank: int) -> Int[Tensor, "2 r"]:
    """Rows and columns of the largest entry left after each elimination step."""
    rest = weight.clone()
    pivots = torch.empty(2, rank, dtype=torch.int64)
    free_rows = torch.ones(rest.shape[0], 1, dtype=torch.bool, device=rest.device)
    free_columns = torch.ones(1, rest.shape[1], dtype=torch.bool, device=rest.device)
    for step in range(rank):
        # -1 keeps rounding noise in eliminated rows and columns from being chosen again.
        candidates = torch.where(free_rows & free_columns, rest.abs(), -1.0)
        row, column = divmod(int(candidates.argmax()), rest.shape[1])
        pivots[0, step], pivots[1, step] = row, column
        free_rows[row], free_columns[:, column] = False, False
        if rest[row, column] != 0:
            rest.addr_(rest[:, column] / rest[row, column], rest[row].clone(), alpha=-1)
    return pivots


def _factors_at_pivots(
    panel: Float[Tensor, "out r"],
    pivot_rows: Float[Tensor, "r in"],
    rows: Int[Tensor, " r"],
    columns: Int[Tensor, " r"] | slice,
) -> tuple[Float[Tensor, "out r"], Float[Tensor, " r"], Float[Tensor, "r in"]]:
    """LDU factors with the pivots given: ``B = C (D U11)⁻¹`` and ``A = (L11 D)⁻¹ R``."""
    # A pivot below this is what rounding the weight to float32 leaves of a dependent column.
    largest = panel.abs().amax(0).cummax(0).values
    require_finite(largest)
    require_finite(pivot_rows)
    core, kept = _eliminated(pivot_rows[:, columns], torch.finfo(torch.float32).eps * largest)
    diagonal = core.diagonal().clone()
    if kept is not None:
        diagonal[~kept] = 0.0

    left = _solve_right(panel, core, kept)
    left[rows] = torch.tril(core, -1).fill_diagonal_(1.0)

    right = torch.linalg.solve_triangular(core, pivot_rows, upper=False, unitriangular=True)
    right[:, columns] = torch.triu(core)
    if kept is None:
        return left, diagonal, right.div_(diagonal[:, None])
    right /= torch.where(kept, diagonal, 1.0)[:, None]
    return left * kept, diagonal, right * kept[:, None]


def _eliminated(
    core: Float[Tensor, "k k"], tolerance: Float[Tensor, " k"]
) -> tuple[Float[Tensor, "k k"], Bool[Tensor, " k"] | None]:
    """Return L (below the diagonal) and DU of a matrix, pivoting nothing, and the pivots kept.

    None stands for all of them. LAPACK has no factorization without pivoting, but where its
    pivoting leaves every row in its place, as it does for pivots just found, its own is this one.
    """
    factorized, interchanges, _ = torch.linalg.lu_factor_ex(core)
    in_place = torch.arange(1, len(core) + 1, dtype=interchanges.dtype, device=core.device)
    if torch.equal(interchanges, in_place) and (factorized.diagonal().abs() > tolerance).all():
        return factorized, None
    eliminated = core.clone()
    _eliminate(eliminated, tolerance)
    kept = eliminated.diagonal().abs() > tolerance
    return eliminated, None if kept.all() else kept


def _eliminate(matrix: Float[Tensor, "k k"], tolerance: Float[Tensor, " k"]) -> None:
    """Overwrite a matrix with its L and DU, at the given order of rows.

    It recurses on halves so that the work is in matrix products. The multipliers of a pivot
    below the tolerance are zero.
    """
    size = matrix.shape[0]
    if size <= _BLOCK:
        for step in range(size - 1):
            below = matrix[step + 1 :, step]
            if matrix[step, step].abs() > tolerance[step]:
                below /= matrix[step, step]
            else:
                below.zero_()
            matrix[step + 1 :, step + 1 :].addr_(below, matrix[step, step + 1 :], alpha=-1)
        return
    half = size // 2
    top, bottom = matrix[:half], matrix[half:]
    _eliminate(top[:, :half], tolerance[:half])
    kept = top.diagonal().abs() > tolerance[:half]
    top[:, half:] = torch.linalg.solve_triangular(
        top[:, :half], top[:, half:], upper=False, unitriangular=True
    )
    bottom[:, :half] = _solve_right(bottom[:, :half], top[:, :half], kept)
    bottom[:, half:].addmm_(bottom[:, :half], top[:, half:], alpha=-1)
    _eliminate(bottom[:, half:], tolerance[half:])


def _solve_right(
    rows: Float[Tensor, "n k"], upper: Float[Tensor, "k k"], kept: Bool[Tensor, " k"] | None
) -> Float[Tensor, "n k"]:
    """Solve ``X U = rows`` for X with the columns of dropped pivots zero; None drops none."""
    if kept is None:
        return torch.linalg.solve_triangular(upper, rows, upper=True, left=False)
    solvable = torch.triu(upper) * kept[:, None]
    solvable.diagonal()[~kept] = 1.0
    return torch.linalg.solve_triangular(solvable, rows, upper=True, left=False) * kept


def _partial(weight: Float[Tensor, "out in"], r: int, pivots: Tensor | None) -> Factors:
    return ldu(weight, r, pivots=pivots)


def _complete(weight: Float[Tensor, "out in"], r: int, pivots: Tensor | None) -> Factors:
    return ldu(weight, r, pivots=pivots, pivoting="complete")


PARTIAL = Factorization("partial", "ldu", _partial, pivot_axes=1, advice='pivoting="complete"')
COMPLETE = Factorization("complete", "ldu", _complete, pivot_axes=2)
