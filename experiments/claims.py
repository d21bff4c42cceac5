"""The paper's claims, tested with pairs of rows on the same datasets and seeds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from experiments.config import FOLDER, read_experiment
from experiments.results import Record, Results
from experiments.table import as_markdown, records_of
from loldu.errors import LoLDUError
from loldu.files import read_toml


@dataclass(frozen=True)
class Claim:
    """A question that a table answers.

    Attributes:
        asks: The question.
        experiment: Name of the table.
        pairs: Pairs of a row that should do better and the row to compare it with. Several pairs
            are pooled.
        compares: Common description of several pairs.
    """

    asks: str
    experiment: str
    pairs: Sequence[tuple[str, str]]
    compares: str = ""


class Difference(NamedTuple):
    """A mean difference, its 95% interval, and the number of datasets and seeds."""

    mean: float
    low: float
    high: float
    data: int
    seeds: int


def read_claims() -> list[Claim]:
    """Read the claims of ``experiments/claims.toml``.

    Raises:
        LoLDUError: If a claim lacks a key or has an unknown one.
    """
    file = FOLDER / "claims.toml"
    try:
        return [Claim(**claim) for claim in read_toml(file, "The claims").get("claim", [])]
    except TypeError as error:
        raise LoLDUError(f"{file}: a [[claim]] has a mistake: {error}.") from error


def claims_table(claims: Sequence[Claim], scale: str, results: Results) -> str:
    """Return Markdown with the difference of each claim over datasets and seeds.

    The brackets hold the 95% interval of the mean over seeds, for these datasets alone. Claims
    without results at this scale are left out.
    """
    rows = [_row(claim, scale, results) for claim in claims]
    header = ["question", "rows (parameters)", "data x seeds", "difference", "shown"]
    return as_markdown(header, [row for row in rows if row])


def _row(claim: Claim, scale: str, results: Results) -> list[str]:
    """Return the cells of a claim; empty without results."""
    experiment = read_experiment(claim.experiment)
    pairs = [(experiment.row(one), experiment.row(other)) for one, other in claim.pairs]
    if scale not in experiment.scales or any(scale not in row.scales for p in pairs for row in p):
        return []
    sides = [[records_of(experiment, row, scale, results) for row in pair] for pair in pairs]
    found = difference(sides)
    if found is None:
        return []
    one, other = (
        f"{pairs[0][i].label} ({max(r['parameters'] for r in sides[0][i]):,})" for i in (0, 1)
    )
    interval = f"{found.mean:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"
    compared = claim.compares or f"{one} less {other}"
    return [claim.asks, compared, f"{found.data} x {found.seeds}", interval, verdict(found)]


def difference(sides: Sequence[Sequence[Sequence[Record]]]) -> Difference | None:
    """Return the mean difference of scores over shared datasets and seeds; None without any.

    Pairs on the same dataset and seed share their randomness, so their mean counts as one
    observation. The interval is Student's, from the spread over seeds within datasets, pooled.
    """
    import numpy as np
    from scipy.stats import t as student  # takes a second to import

    changes: dict[str, dict[int, list[float]]] = {}
    for ours, theirs in sides:
        others = {(r["data"], r["seed"]): r["score"] for r in theirs}
        for data, seed, score in ((r["data"], r["seed"], r["score"]) for r in ours):
            if (data, seed) in others:
                by_seed = changes.setdefault(data, {}).setdefault(seed, [])
                by_seed.append(score - others[data, seed])
    if not changes:
        return None
    groups = [np.array([np.mean(c) for c in by_seed.values()]) for by_seed in changes.values()]
    center = float(np.mean([group.mean() for group in groups]))
    freedom = sum(len(group) - 1 for group in groups)
    half = math.inf
    if freedom:
        variance = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / freedom
        error = math.sqrt(variance * sum(1 / len(group) for group in groups)) / len(groups)
        half = float(student.ppf(0.975, freedom)) * error
    seeds = min(map(len, groups))
    return Difference(center, center - half, center + half, len(groups), seeds)


def verdict(found: Difference) -> str:
    """Return "better" or "worse", or "no clear difference" if the interval contains 0."""
    if found.low > 0:
        return "better"
    return "worse" if found.high < 0 else "no clear difference"
