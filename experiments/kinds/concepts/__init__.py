"""Teaches a concept of the embedded world, and judges it after training.

The judge knows the world: a classifier reads the attributes off every picture. So the result shows
how much of the concept the model draws, and how much other prompts suffer. A run with the method
"none" judges the base model.

Every concept is drawn twice: always on, and routed. A routed concept acts on prompts with its word
alone, and guidance leads away from the base; other prompts are then the base's.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from experiments.config import Run
from experiments.kinds.by_trainer import Taught, teach, token_of
from experiments.kinds.concepts.judge import BACKGROUNDS, ROUTED, SEEDS_EACH, judge_of
from experiments.outcome import Outcome
from loldu import load_concept, route_concepts
from loldu.adapter.components import adapted_layers
from loldu.base.families import network_of
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
            load_concept(pipeline, concept, route=False)
        else:
            pipeline.load_lora_weights(str(work), weight_name="pytorch_lora_weights.safetensors")
    drawn = judge.draw(pipeline)
    save_png(strip(drawn.concept), work / "strip.png")
    scores = judge.measure(drawn)
    if run.method != "none":
        with routed(pipeline, token_of(run)):
            called = judge.measure_concept(judge.draw_concept(pipeline))
            called |= judge.measure_beside(judge.draw_beside(pipeline))
        scores |= {ROUTED + name: value for name, value in called.items()}
    scores = {name: round(value, 4) for name, value in scores.items()}
    return Outcome(
        score=scores["concept"],
        scores=scores,
        facts=facts,
        picture=work / "strip.png",
        **vars(taught),
    )


@contextmanager
def routed(pipeline: DiffusionPipeline, token: str) -> Generator[None]:
    """Inside the block, a concept acts on its prompts alone, and guidance leads from the base.

    One pass draws LoLDU's conditional and unconditional rows. A LoRA needs a pass for each.
    """
    if adapted_layers(pipeline):
        route_concepts(pipeline, {"default": token})
        yield
        route_concepts(pipeline, None)
    else:
        network = network_of(pipeline)
        network.forward = partial(_forward_each, network, network.forward)
        yield
        del network.forward


def _forward_each(
    network: Any,  # noqa: ANN401
    forward: Callable[..., tuple[Tensor]],
    sample: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    **options: Any,  # noqa: ANN401
) -> tuple[Tensor]:
    """Predict the unconditional half of a batch with the base, the other half with the adapter."""
    halves = zip(sample.chunk(2), encoder_hidden_states.chunk(2), strict=True)
    predictions = []
    for (rows, text), switch in zip(
        halves, (network.disable_adapters, network.enable_adapters), strict=True
    ):
        switch()
        predictions.append(forward(rows, timestep, encoder_hidden_states=text, **options)[0])
    return (torch.cat(predictions),)


def strip(concept: list[Image.Image]) -> Image.Image:
    """Put one picture of each of the first `SHOWN` other backgrounds side by side."""
    assert len(concept) == SEEDS_EACH * len(BACKGROUNDS)
    shown = concept[: 2 * SHOWN * SEEDS_EACH : 2 * SEEDS_EACH]
    return Image.fromarray(np.concatenate([np.asarray(picture) for picture in shown], axis=1))
