"""Write results without a run."""

from pathlib import Path
from typing import Any

from experiments import config
from experiments.results import write_records


def write_result(folder: Path, run: config.Run, score: float, **more: Any) -> None:  # noqa: ANN401
    """Write a result like the runner does, with an invented score."""
    record = {
        "scale": run.scale,
        "row": run.row,
        "data": run.data,
        "seed": run.seed,
        "settings": run.settings(),
        "score": score,
        "scores": {},
        "parameters": 12,
    }
    write_records(folder / f"{run.experiment}.jsonl", [record | more])


def write_many(folder: str, name: str) -> None:
    """Write twenty results of a row, one by one; the process that runs this imports no torch."""
    for seed in range(20):
        record = {"scale": "pocket", "row": name, "data": "d", "seed": seed, "score": seed}
        write_records(Path(folder) / "sample.jsonl", [record])
