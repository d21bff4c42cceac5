"""The results of runs: one JSON each, kept where the table looks for them."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.config import FOLDER, Run
from experiments.outcome import Outcome
from loldu.errors import LoLDUError
from loldu.files import write_atomically
from loldu.provenance import provenance, write_record

LIBRARIES = ("torch", "transformers", "peft", "datasets", "accelerate")
Record = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """A store of results.

    Attributes:
        folder: Results of an experiment lie under `folder`/<experiment>; without one, under
            ``experiments/<experiment>/results``, where those of the project are.
    """

    folder: Path | None = None

    def of(self, experiment: str) -> Path:
        """Where the results of an experiment lie."""
        return self.folder / experiment if self.folder else FOLDER / experiment / "results"

    def file(self, run: Run) -> Path:
        """Where the result of a run lies, or will."""
        return self.of(run.experiment) / run.place

    def read(self, run: Run) -> Record | None:
        """The result of a run, or None where it was not run.

        Raises:
            LoLDUError: The file cannot be read, or was made with other settings.
        """
        file = self.file(run)
        try:
            record = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise LoLDUError(f"The result {file} cannot be read ({error}): remove it.") from error
        if record["settings"] != json.loads(json.dumps(run.settings())):
            raise LoLDUError(
                f"The result {file} was made with other settings than its row has now: "
                f"make the row again with `run {run.experiment} --scale {run.scale} "
                f"--rows {run.row} --again`, or put the settings back."
            )
        return record

    def write(self, run: Run, outcome: Outcome, argv: list[str]) -> None:
        """Keep the result of a run, over an older one."""
        record = {
            "experiment": run.experiment,
            "row": run.row,
            "data": run.data,
            "seed": run.seed,
            "scale": run.scale,
            "settings": run.settings(),
            **outcome.as_json(),
            **provenance("experiments", argv, LIBRARIES),
        }
        file = self.file(run)
        if outcome.picture:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file.with_suffix(".png"), outcome.picture.read_bytes())
        write_record(file, record)
