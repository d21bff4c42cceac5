"""Tables and a picture sheet of judged concepts."""

from statistics import mean

from PIL import Image

from experiments.config import Experiment
from experiments.kinds.concepts.judge import pictures_of
from experiments.results import Record, Results
from experiments.table import as_markdown, mean_and_spread, records_of
from loldu.errors import LoLDUError
from loldu.pictures.folder import list_images
from loldu.pictures.open import load_image
from pocket.judge import sheet

_COLUMNS = (
    *("dino", "clip_i", "clip_t", "concept", "background", "others", "leak"),
    *("beside", "neighbor", "pair", "partner"),
)
_LIKENESS = ("dino", "clip_i")
BASE = "base"
"""Row of the base model, which the gap is measured from."""


def table(experiment: Experiment, scale: str, results: Results) -> str:
    """Return two tables as Markdown: one row per method, then one row per concept."""
    base, methods = read(experiment, scale, results)
    if not base:
        return "Not run."
    return f"{by_method(base, methods)}\n\n{by_concept(base, methods)}"


def by_method(base: dict[str, Record], methods: dict[str, list[Record]]) -> str:
    """Return Markdown with one row per method: mean ± standard deviation over runs.

    A method that was also drawn in other ways, such as routed, has a row for each. Their other
    prompts are the base's.
    """
    columns = [name for name in _COLUMNS if all(name in b["scores"] for b in base.values())]
    header = ["method", "parameters", "runs", "gap closed: DINO", "CLIP-I", *columns]
    averages = [f"{mean(b['scores'][c] for b in base.values()):.3f}" for c in columns]
    rows = [[BASE, "0", "", "0", "0", *averages]]
    for method, runs in methods.items():
        drawn = {method: runs} | {
            f"{method}, {way}": _drawn(way, runs, base) for way in _ways(runs)
        }
        for label, records in drawn.items():
            row = [label, f"{runs[0]['parameters']:,}", str(len(records))]
            row += [f"{mean(_closed(r, base, k) for r in records):.2f}" for k in _LIKENESS]
            row += [mean_and_spread([r["scores"][name] for r in records]) for name in columns]
            rows.append(row)
    return as_markdown(header, rows)


def by_concept(base: dict[str, Record], methods: dict[str, list[Record]]) -> str:
    """Return Markdown with one row per concept: the gap closed, DINO / CLIP-I, per method."""
    rows = []
    for concept in base:
        row = [concept]
        for runs in methods.values():
            own = [r for r in runs if r["data"] == concept]
            closed = [f"{mean(_closed(r, base, k) for r in own):.2f}" for k in _LIKENESS if own]
            row.append(" / ".join(closed))
        rows.append(row)
    return as_markdown(["gap closed", *methods], rows)


def comparison(experiment: Experiment, scale: str, results: Results) -> Image.Image | None:
    """Return a sheet with one row per concept: two true pictures, then three of every method.

    Returns:
        The sheet of the first seed, or None if a picture is missing.
    """
    rows = []
    for concept in experiment.at(scale).data:
        pictures = [load_image(p) for p in list_images(pictures_of(concept))[:2]]
        for row in experiment.rows_at(scale):
            file = results.picture(next(iter(experiment.runs(row, scale, [concept]))))
            if not file.exists():
                return None
            shown = Image.open(file).convert("RGB")
            edge = shown.height
            pictures += [shown.crop((x, 0, x + edge, edge)) for x in range(0, shown.width, edge)]
        names = ", ".join(row.label for row in experiment.rows_at(scale))
        rows.append((f"{concept}: two true pictures; three each by {names}", pictures))
    return sheet(rows)


def read(
    experiment: Experiment, scale: str, results: Results
) -> tuple[dict[str, Record], dict[str, list[Record]]]:
    """Return the base's results by concept, and the results of every row that was run."""
    base = {r["data"]: r for r in records_of(experiment, experiment.row(BASE), scale, results)}
    methods = {
        row.label: records
        for row in experiment.rows_at(scale)
        if row.name != BASE and (records := records_of(experiment, row, scale, results))
    }
    judged = {record["data"] for records in methods.values() for record in records}
    if missing := sorted(judged - base.keys()):
        raise LoLDUError(
            f"{experiment.name} has no result of the base on {missing[0]}: make it with "
            f"`run {experiment.name} --rows {BASE}`."
        )
    return base, methods


def _ways(runs: list[Record]) -> list[str]:
    """Return the other ways in which the pictures of runs were drawn."""
    scores = dict.fromkeys(name for run in runs for name in run["scores"])
    return [name.removesuffix("_concept") for name in scores if name.endswith("_concept")]


def _drawn(way: str, runs: list[Record], base: dict[str, Record]) -> list[Record]:
    """Return the results of the same runs drawn in another way, with the base's other prompts."""
    return [
        run
        | {
            "scores": base[run["data"]]["scores"]
            | {
                name.removeprefix(f"{way}_"): value
                for name, value in run["scores"].items()
                if name.startswith(f"{way}_")
            }
        }
        for run in runs
        if f"{way}_concept" in run["scores"]
    ]


def _closed(run: Record, base: dict[str, Record], metric: str) -> float:
    """Return how much of the way from the base's score to that of true pictures a run covers."""
    of_base = base[run["data"]]
    start, goal = of_base["scores"][metric], of_base["facts"]["real"][metric]
    return (run["scores"][metric] - start) / (goal - start)
