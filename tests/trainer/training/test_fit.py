"""The training loop: which work counts as training time."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eval.protocols.live import Pictures
from trainer.options.config import Config
from trainer.train_dreambooth_loldu import main
from trainer.training import fit
from trainer.training.scores import LiveScores
from trainer.training.validation import Validation

SCORED = ("--validation_prompt", "sks", "a toy", "--token", "sks", "--validation_steps", "1")
SCORED += ("--validation_scores", "--validation_images", "1", "--checkpointing_steps", "2")


class SomeScorer:
    def score(self, pictures: Pictures) -> dict[str, float]:
        return {"dino": 0.5, "clip_i": 0.5, "clip_t": 0.5, "drift": 0.5}


def test_training_seconds_exclude_pictures_scores_and_checkpoints(
    make_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a fake clock a step takes a second, and everything else far longer."""
    now = 5.0

    def taking(seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            nonlocal now
            now += seconds
            return function(*args, **kwargs)

        return slow

    monkeypatch.setattr(fit, "time", SimpleNamespace(perf_counter=lambda: now))
    for place, name, seconds in (
        (fit, "accumulate_gradients", 1),
        (Validation, "draw", 100),
        (LiveScores, "measure", 1000),
        (fit, "save_checkpoint", 10_000),
    ):
        monkeypatch.setattr(place, name, taking(seconds, getattr(place, name)))
    folder = tmp_path / "run"
    for resume in ([], ["--resume", str(folder / "checkpoint-000002")]):
        main(make_config(*SCORED, *resume), SomeScorer())
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["seconds"] for line in lines] == [1, 2, 3, 4]
        assert json.loads((folder / "summary.json").read_text())["train_seconds"] == 4
