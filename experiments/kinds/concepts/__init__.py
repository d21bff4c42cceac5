"""Teaches a concept of the embedded world, and judges it after training.

The judge knows the world: a classifier reads the attributes off every picture. So the result shows
how much of the concept the model draws, and how much other prompts suffer. A run with the method
"none" judges the base model.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from experiments.config import Run
from experiments.kinds.by_trainer import Taught, teach
from experiments.kinds.concepts.judge import BACKGROUNDS, SEEDS_EACH, judge_of
from experiments.outcome import Outcome
from loldu import load_concept
from loldu.base.open import load_pipeline, weights_digest
from loldu.files import save_png

SHOWN = 3
"""Pictures in a strip, of every second background."""


def run(run: Run, work: Path) -> Outcome:
    """Train and judge a concept.

    Raises:
        LoLDUError: If the trainer refuses an option.
    """
    judge = judge_of(run.data)
    pipeline = load_pipeline(run.model)
    facts: dict[str, object] = {"base": weights_digest(pipeline)}
    taught = Taught()
    if run.method == "none":
        facts["real"] = judge.likeness(judge.pictures)
    else:
        taught = teach(run, work, run.options)
        concept = work / "concept.safetensors"
        if concept.exists():
            load_concept(pipeline, concept, route=False)  # as the LoRAs beside it are
        else:
            pipeline.load_lora_weights(str(work), weight_name="pytorch_lora_weights.safetensors")
    drawn = judge.draw(pipeline)
    save_png(strip(drawn.concept), work / "strip.png")
    scores = {name: round(value, 4) for name, value in judge.measure(drawn).items()}
    return Outcome(
        score=scores["concept"],
        scores=scores,
        facts=facts,
        picture=work / "strip.png",
        **vars(taught),
    )


def strip(concept: list[Image.Image]) -> Image.Image:
    """Put one picture of each of the first `SHOWN` other backgrounds side by side."""
    assert len(concept) == SEEDS_EACH * len(BACKGROUNDS)
    shown = concept[: 2 * SHOWN * SEEDS_EACH : 2 * SEEDS_EACH]
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in shown], axis=1))
