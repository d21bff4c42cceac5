"""Teaches a concept of the embedded world, and judges it during training: learning curves."""

import json
from pathlib import Path

from experiments.config import Run
from experiments.kinds.by_trainer import teach, token_of
from experiments.kinds.concepts.judge import judge_of
from experiments.kinds.curves.scorer import METRICS, CurveScorer
from experiments.outcome import Outcome
from loldu.base.open import load_pipeline, weights_digest
from loldu.base.record import SUMMARY
from trainer.training.scores import read_scores


def run(run: Run, work: Path) -> Outcome:
    """Train a concept and score it every `validation_steps`.

    Raises:
        LoLDUError: If the trainer refuses an option.
    """
    scorer = CurveScorer(judge_of(run.data))
    measuring = {
        "validation_prompt": scorer.prompts(token_of(run)),
        "drift_prompt": scorer.drift_prompts(),
        "validation_scores": True,
        "sample_at_end": False,
        "lora_file": "no",
    }
    taught = teach(run, work, {**run.options, **measuring}, scorer)
    points = [
        {**point, **{key: round(point[key], 4) for key in METRICS}} for point in read_scores(work)
    ]
    scores = {key: points[-1][key] for key in METRICS}
    summary = json.loads((work / SUMMARY).read_text(encoding="utf-8"))
    return Outcome(
        score=scores["concept"],
        scores=scores,
        history=points,
        facts={
            "base": weights_digest(load_pipeline(run.model)),
            "concept_bytes": summary["concept_bytes"],
        },
        **vars(taught),
    )
