"""Results without a run."""

import json
from pathlib import Path
from typing import Any

from experiments import config


def write_result(folder: Path, run: config.Run, score: float, **more: Any) -> None:  # noqa: ANN401
    """A result as the runner keeps it, with a score that was not measured."""
    file = folder / run.experiment / run.place
    file.parent.mkdir(parents=True, exist_ok=True)
    record = {
        "row": run.row,
        "data": run.data,
        "seed": run.seed,
        "settings": run.settings(),
        "score": score,
        "scores": {},
        "parameters": 12,
    }
    file.write_text(json.dumps(record | more))
