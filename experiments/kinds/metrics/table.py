"""Which metric to believe: rank correlations of every metric with what the classifier reads."""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float64, Int64
from scipy.stats import rankdata

from eval.metrics import METRICS
from eval.metrics.bootstrap import CONFIDENCE, Estimate
from experiments.config import Experiment
from experiments.kinds.metrics import TRUTHS
from experiments.results import Record, Results
from experiments.table import as_markdown, records_of

RESAMPLINGS = 2000
MAIN = "concept"
"""Truth that orders the table."""


def table(experiment: Experiment, scale: str, results: Results) -> str:
    """Return the correlations as Markdown, and which metric to believe."""
    records = [
        record
        for row in experiment.rows_at(scale)
        for record in records_of(experiment, row, scale, results)
    ]
    concepts = sorted({record["data"] for record in records})
    if len(records) < 3:
        return "Not run."
    metrics = [name for name in METRICS if all(name in r["scores"] for r in records)]
    picked = resampled([record["data"] for record in records], RESAMPLINGS)
    found = {truth: _correlations(records, metrics, truth, picked) for truth in TRUTHS}
    order = sorted(metrics, key=lambda name: -np.nan_to_num(found[MAIN][name][0], nan=-2.0))
    rows = [
        [
            METRICS[name].title,
            *(_cell(found[truth][name]) for truth in TRUTHS),
            _number(within(records, name, MAIN)),
        ]
        for name in order
    ]
    header = ["metric", *TRUTHS.values(), "the first, within a concept"]
    lines = [f"- {_best(truth, found[truth])}" for truth in TRUTHS]
    about = (
        f"{len(records)} adapters of {len(concepts)} concepts. Spearman's rank correlation with "
        "the share that the classifier finds as asked, and its 95% interval over adapters; 1 is "
        "perfect agreement. The sign is turned for metrics where lower is better."
    )
    return "\n\n".join([about, as_markdown(header, rows), "\n".join(lines)])


def spearman(
    a: Float64[np.ndarray, "draws n"], b: Float64[np.ndarray, "draws n"]
) -> Float64[np.ndarray, " draws"]:
    """Return Spearman's rank correlation of each pair of rows; nan if a row is constant."""
    ranks = [rankdata(values, axis=1) for values in (a, b)]
    x, y = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    norms = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    products = (x * y).sum(axis=1)
    return np.divide(products, norms, out=np.full(len(x), np.nan), where=norms > 0)


def resampled(concepts: Sequence[str], draws: int) -> Int64[np.ndarray, "draws n"]:
    """Return places of adapters: first all as they are, then drawn anew within each concept."""
    rng = np.random.default_rng(0)
    places = np.tile(np.arange(len(concepts)), (draws + 1, 1))
    for concept in sorted({*concepts}):
        own = np.flatnonzero([name == concept for name in concepts])
        places[1:, own] = own[rng.integers(len(own), size=(draws, len(own)))]
    return places


def within(records: Sequence[Record], metric: str, truth: str) -> float:
    """Return the mean over concepts of the correlation among the adapters of one concept."""
    found = []
    for concept in sorted({record["data"] for record in records}):
        own = [record for record in records if record["data"] == concept]
        found.append(spearman(_column(own, metric)[None], _column(own, truth)[None])[0])
    known = [value for value in found if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")


def _correlations(
    records: Sequence[Record],
    metrics: Sequence[str],
    truth: str,
    picked: Int64[np.ndarray, "draws n"],
) -> dict[str, Float64[np.ndarray, " draws"]]:
    """Return the correlation of each metric: as measured, then of each resampling."""
    wanted = _column(records, truth)[picked]
    return {name: spearman(_column(records, name)[picked], wanted) for name in metrics}


def _column(records: Sequence[Record], name: str) -> Float64[np.ndarray, " n"]:
    """Return a score of each adapter, negative where lower is better."""
    sign = 1.0 if name not in METRICS or METRICS[name].higher_is_better else -1.0
    return sign * np.array([record["scores"][name] for record in records], dtype=np.float64)


def _best(truth: str, found: Mapping[str, Float64[np.ndarray, " draws"]]) -> str:
    """Return the sentence that names the metric to believe, and those that may be as good."""
    known = {name: values for name, values in found.items() if not np.isnan(values[0])}
    if not known:
        return f"The {TRUTHS[truth]}: no metric varies."
    first = max(known, key=lambda name: known[name][0])
    if _interval(known[first]).low <= 0:
        return f"The {TRUTHS[truth]}: believe none; no correlation is above 0 for certain."
    rivals = [
        METRICS[name].title
        for name, values in known.items()
        if name != first and _interval(known[first] - values).low <= 0
    ]
    also = f"; {', '.join(rivals)} may be as good" if rivals else ""
    return f"The {TRUTHS[truth]}: believe {METRICS[first].title}{also}."


def _interval(values: Float64[np.ndarray, " draws"]) -> Estimate:
    """Return the first value, and the interval of the others."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.nanquantile(values[1:], [tail, 1 - tail])
    return Estimate(float(values[0]), float(low), float(high))


def _cell(values: Float64[np.ndarray, " draws"]) -> str:
    if np.isnan(values[0]):
        return "constant"
    one = _interval(values)
    return f"{one.mean:.2f} [{one.low:.2f}, {one.high:.2f}]"


def _number(value: float) -> str:
    return "constant" if np.isnan(value) else f"{value:.2f}"
