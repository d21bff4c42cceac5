"""Teaches a concept of the embedded world, and scores its pictures by every metric of `eval`.

The embedded world has a classifier that reads the true attributes off a picture. So the table of
this kind can say how far each metric agrees with the truth, over adapters of mixed quality.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image

from eval.config import ModelsConfig
from eval.encoders.load import load_encoders
from eval.encoders.subject import SUBJECT
from eval.metrics import METRICS, Sample
from eval.protocols.live import Pictures
from eval.protocols.prompts import context_of
from experiments.config import Run
from experiments.kinds.by_trainer import teach, token_of
from experiments.kinds.concepts.judge import ENCODERS, Judge, judge_of, pictures_of
from experiments.kinds.curves.scorer import CurveScorer
from experiments.outcome import Outcome
from loldu.base.open import load_pipeline, weights_digest
from loldu.pictures.folder import list_images
from loldu.pictures.open import load_image
from pocket.world import CONCEPTS
from trainer.training.scores import read_scores

TRUTHS = {
    "concept": "attributes of the concept",
    "background": "background of the prompt",
    "others": "attributes of other prompts",
}
"""Shares that the classifier reads, each with a heading."""
AT_THE_END = 10**6
"""Steps between scores that no training has: they are measured at its start and end."""


class MetricScorer(CurveScorer):
    """Scorer for the trainer: what the classifier reads, and every metric that needs no masks."""

    def __init__(self, judge: Judge) -> None:
        """Load the encoders, and the held-out pictures of all concepts as a gallery."""
        super().__init__(judge)
        names = [n for m in METRICS.values() for n in m.encoders if n not in SUBJECT]
        models = ModelsConfig(clip=str(ENCODERS / "clip"), dino=str(ENCODERS / "dino"))
        self._encoders = load_encoders(names, models, "cpu")
        own = {name: list_images(pictures_of(name) / "held_out") for name in CONCEPTS}
        self._owners = [name for name, paths in own.items() for _ in paths]
        self._gallery = self._encode([load_image(p) for paths in own.values() for p in paths])

    def score(self, pictures: Pictures) -> dict[str, float]:
        """Return every metric that applies, and the shares of `CurveScorer`."""
        clip, thing = self._judge.clip, self._judge.concept["kind"]
        concept = Sample(
            generated=self._encode(pictures.concept),
            real=self._encode(self._judge.held_out),
            training=self._encode(self._judge.pictures),
            gallery=self._gallery,
            gallery_own=torch.tensor([name == self._judge.name for name in self._owners]),
            prompts=pictures.prompts,
            prompt_features=clip.encode_texts(pictures.prompts),
            context_features=clip.encode_texts(
                [context_of(text, None, thing) for text in pictures.prompts]
            ),
        )
        others = Sample(generated=self._encode(pictures.others), base=self._encode(pictures.base))
        samples = {name: others if m.against == "base" else concept for name, m in METRICS.items()}
        return super().score(pictures) | {
            name: metric.score(samples[name])
            for name, metric in METRICS.items()
            if metric.applies(samples[name])
        }

    def _encode(self, images: Sequence[Image.Image]) -> dict[str, torch.Tensor]:
        return {name: encoder.encode_images(images) for name, encoder in self._encoders.items()}


def run(run: Run, work: Path) -> Outcome:
    """Train a concept, from the last checkpoint in `work` if there is one, and score it.

    Raises:
        LoLDUError: If the trainer refuses an option.
    """
    scorer = MetricScorer(judge_of(run.data))
    measuring = {
        "validation_prompt": scorer.prompts(token_of(run)),
        "drift_prompt": scorer.drift_prompts(),
        "validation_scores": True,
        "validation_steps": AT_THE_END,
        "sample_at_end": False,
        "lora_file": "no",
    }
    taught = teach(run, work, {**run.options, **measuring}, scorer)
    *_, last = read_scores(work)
    scores = {name: round(value, 5) for name, value in last.items() if name != "step"}
    return Outcome(
        score=scores["concept"],
        scores=scores,
        facts={"base": weights_digest(load_pipeline(run.model)), "steps": last["step"]},
        **vars(taught),
    )
