"""What a run gives back, and how it becomes a record."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        score: The number of the paper's table, in its unit.
        scores: Every number that was measured, by name.
        history: Scores on the way: epoch or step, and what was measured there.
        losses: The mean training loss of each epoch.
        parameters: Trained, without the head.
        head_parameters: Trained in the head.
        train_seconds: Of training alone.
        peak_memory_mib: While training: PyTorch's on a GPU, the process's on a CPU.
        facts: What else must be known: hashes of the base and of the data, how many rows.
        picture: A file to keep beside the result.
    """

    score: float
    scores: dict[str, float]
    parameters: int
    head_parameters: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    train_seconds: float = 0.0
    peak_memory_mib: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)
    picture: Path | None = None

    def as_json(self) -> dict[str, Any]:
        """The outcome as JSON has it, rounded to what was measured."""
        values = asdict(self)
        del values["picture"]
        return _rounded(values)


def _rounded(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
