"""What the paper claims, tested run by run: pairs of rows on the same data and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from eval.bootstrap import Estimate, estimate
from experiments.config import FOLDER, read_experiment
from experiments.results import Record, Results
from experiments.table import as_markdown, records_of
from trainer.errors import TrainerError
from trainer.files import read_toml


@dataclass(frozen=True)
class Claim:
    """A question that two rows of a table answer.

    Attributes:
        asks: What is to be found out.
        experiment: The table.
        row: The row that should do better.
        against: The row it is compared with.
    """

    asks: str
    experiment: str
    row: str
    against: str


def read_claims() -> list[Claim]:
    """The claims of ``experiments/claims.toml``.

    Raises:
        TrainerError: One of them lacks a part or has one too many.
    """
    file = FOLDER / "claims.toml"
    wanted = {f.name for f in fields(Claim)}
    claims = read_toml(file, "The claims").get("claim", [])
    for claim in claims:
        if set(claim) != wanted:
            raise TrainerError(f"{file}: each [[claim]] has {', '.join(sorted(wanted))}.")
    return [Claim(**claim) for claim in claims]


def claims_table(claims: Sequence[Claim], scale: str, results: Results) -> str:
    """Markdown: each pair's difference over data and seeds, and what it shows.

    In brackets is the interval in which the mean lies in 95 of 100 resamplings of data sets, and of
    seeds within each. Pairs that were not run at this scale are left out.
    """
    rows = []
    for claim in claims:
        experiment = read_experiment(claim.experiment)
        pair = [experiment.row(name) for name in (claim.row, claim.against)]
        if scale not in experiment.scales or any(scale not in row.scales for row in pair):
            continue
        ours, theirs = (records_of(experiment, row, scale, results) for row in pair)
        found = difference(ours, theirs)
        if found is None:
            continue
        numbers = [f"{max(r['parameters'] for r in side):,}" for side in (ours, theirs)]
        rows.append(
            [
                claim.asks,
                f"{pair[0].label} ({numbers[0]}) less {pair[1].label} ({numbers[1]})",
                str(len(_pairs(ours, theirs))),
                f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}]",
                verdict(found),
            ]
        )
    return as_markdown(["question", "rows (parameters)", "pairs", "difference", "shown"], rows)


def difference(ours: Sequence[Record], theirs: Sequence[Record]) -> Estimate | None:
    """The mean difference of scores over shared data and seeds; None where nothing is shared."""
    by_data: dict[str, list[float]] = {}
    for data, seed in sorted(_pairs(ours, theirs)):
        by_data.setdefault(data, []).append(_score(ours, data, seed) - _score(theirs, data, seed))
    return estimate([np.array(d) for d in by_data.values()]) if by_data else None


def verdict(found: Estimate) -> str:
    """What an interval says: which side is better, or that chance could have done it."""
    if found.low > 0:
        return "better"
    return "worse" if found.high < 0 else "no difference"


def _pairs(ours: Sequence[Record], theirs: Sequence[Record]) -> set[tuple[str, int]]:
    return {(r["data"], r["seed"]) for r in ours} & {(r["data"], r["seed"]) for r in theirs}


def _score(records: Sequence[Record], data: str, seed: int) -> float:
    return next(r["score"] for r in records if (r["data"], r["seed"]) == (data, seed))
