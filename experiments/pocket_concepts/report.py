"""What was measured, as tables and as a picture."""

import json
from pathlib import Path
from statistics import mean, stdev

from PIL import Image

from experiments.pocket_concepts.judge import SEEDS_EACH, Drawn, pictures_of
from experiments.table import as_markdown
from loldu.pictures.folder import list_images
from pocket.judge import sheet

Record = dict[str, dict[str, float]]

_COLUMNS = ("dino", "clip_i", "clip_t", "concept", "background", "others", "leak")
_LIKENESS = ("dino", "clip_i")


def by_method(results: Path) -> str:
    """Markdown: a row a way of training, means over runs and their standard deviation."""
    base, methods = _read(results)
    header = ["method", "parameters", "runs", "gap closed: DINO", "CLIP-I", *_COLUMNS]
    averages = [f"{mean(b['scores'][c] for b in base.values()):.3f}" for c in _COLUMNS]
    rows = [["base", "0", "", "0", "0", *averages]]
    for method, runs in methods.items():
        row = [method, f"{runs[0]['parameters']:,}", str(len(runs))]
        row += [f"{mean(_closed(r, base, k) for r in runs):.2f}" for k in _LIKENESS]
        for column in _COLUMNS:
            values = [r["scores"][column] for r in runs]
            row.append(f"{mean(values):.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}")
        rows.append(row)
    return as_markdown(header, rows)


def by_concept(results: Path) -> str:
    """Markdown: a row a concept, a column a way of training; gap closed, DINO / CLIP-I."""
    base, methods = _read(results)
    rows = []
    for concept in base:
        row = [concept]
        for runs in methods.values():
            own = [r for r in runs if r["concept"] == concept]
            closed = [f"{mean(_closed(r, base, k) for r in own):.2f}" for k in _LIKENESS if own]
            row.append(" / ".join(closed))
        rows.append(row)
    return as_markdown(["gap closed", *methods], rows)


def comparison(results: Path, work: Path) -> Image.Image:
    """A row a concept: two true pictures, then three settings by base and every method, seed 0."""
    base, methods = _read(results)
    rows = []
    for concept in base:
        files = {"base": work / "base" / f"{concept}.npz"}
        files |= {m: work / m / f"{concept}-0" / "drawn.npz" for m in methods}
        pictures = [Image.open(p).convert("RGB") for p in list_images(pictures_of(concept))[:2]]
        for file in files.values():
            pictures += Drawn.load(file).concept[: 6 * SEEDS_EACH : 2 * SEEDS_EACH]
        rows.append((f"{concept}: two true pictures; three each by {', '.join(files)}", pictures))
    return sheet(rows)


def _read(results: Path) -> tuple[dict[str, Record], dict[str, list]]:
    base = {p.stem: json.loads(p.read_text()) for p in sorted((results / "base").glob("*.json"))}
    methods = {
        folder.name: [json.loads(p.read_text()) for p in sorted(folder.glob("*.json"))]
        for folder in sorted(results.iterdir())
        if folder.is_dir() and folder.name != "base"
    }
    return base, methods


def _closed(run: dict, base: dict[str, Record], metric: str) -> float:
    """The share of the way from the base's score to that of true pictures."""
    of_base = base[run["concept"]]
    start, goal = of_base["scores"][metric], of_base["real"][metric]
    return (run["scores"][metric] - start) / (goal - start)
