"""The result of a run."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        score: The number in the table, in the paper's unit.
        scores: All measured numbers, by name.
        history: Scores during training, each with its epoch or step.
        losses: Mean training loss of each epoch.
        parameters: Number of trained parameters, without the head.
        head_parameters: Number of trained parameters in the head.
        train_seconds: Seconds of training, without evaluation.
        peak_memory_mib: Peak while training: PyTorch's on a GPU, the process's on a CPU.
        facts: Digests of the base and the data, number of rows.
        picture: Picture to keep beside the result.
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
        """Return the outcome for JSON, without the picture, with six digits a number."""
        values = asdict(self)
        del values["picture"]
        return _rounded(values)


def _rounded(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value
