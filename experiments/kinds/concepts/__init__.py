"""Teaches a concept of the embedded world, and judges it after training.

The judge knows the world: a classifier reads the attributes off every picture. So the result shows
how much of the concept the model draws, and how much other prompts suffer. A run with the method
"none" judges the base model.

Every concept is drawn always on, and in the ways that the option `ways` names; by default routed. A
routed concept acts on prompts with its word alone, and guidance leads away from the base; other
prompts are then the base's. A way may also gate a concept to the tokens of its word.

With `pairs` a second concept is taught, and both are drawn in one picture. With `masks` the
pictures are rendered anew, with masks. The other options are the trainer's.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
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
from experiments.kinds.concepts.judge import (
    BACKGROUNDS,
    LOOKS,
    PARTNER_TOKEN,
    SEEDS_EACH,
    Judge,
    judge_of,
    pictures_of,
)
from experiments.outcome import Outcome
from loldu import load_concept, mix, route_concepts
from loldu.adapter.components import adapted_layers
from loldu.base.families import network_of
from loldu.base.open import load_pipeline, weights_digest
from loldu.files import save_png
from pocket.concepts import render_concept

SHOWN = 3
"""Pictures in a strip, of every second background."""
PARTNER = "partner"
"""Name of the second concept of a pair, as an adapter and as a folder."""


@dataclass(frozen=True)
class Judging:
    """How a concept is judged.

    Attributes:
        ways: Ways of drawing, beside always on: by name, `gate` and `gate_end` of `route_concepts`,
            and `class_word` if the class is one of the words that call the concept.
        pairs: Whether to teach a second concept and to draw both in one picture.
        masks: Whether the training pictures have masks.
    """

    ways: Mapping[str, Mapping[str, Any]]
    pairs: bool
    masks: bool

    @classmethod
    def split(cls, options: Mapping[str, Any]) -> tuple["Judging", dict[str, Any]]:
        """Return how a run is judged, and its options for the trainer."""
        rest = dict(options)
        ways = rest.pop("ways", {"routed": {}})
        return cls(ways, rest.pop("pairs", False), rest.pop("masks", False)), rest


def run(run: Run, work: Path) -> Outcome:
    """Train and judge a concept.

    Raises:
        LoLDUError: If the trainer refuses an option.
    """
    judge = judge_of(run.data)
    judging, options = Judging.split(run.options)
    run = replace(run, options=options)
    pipeline = load_pipeline(run.model)
    facts: dict[str, object] = {"base": weights_digest(pipeline)}
    taught = Taught()
    words = {"default": (token_of(run), judge.concept["kind"])}
    if run.method == "none":
        facts["real"] = judge.likeness(judge.pictures)
    else:
        taught = _teach(run, work, judging)
        _load(pipeline, work, "default")
    drawn = judge.draw(pipeline)
    save_png(strip(drawn.concept), work / "strip.png")
    scores = judge.measure(drawn)
    for way in _ways(pipeline, run, judging):
        with routed(pipeline, words, judging.ways[way]):
            called = judge.measure_concept(judge.draw_concept(pipeline))
            called |= judge.measure_beside(judge.draw_beside(pipeline))
        scores |= {f"{way}_{name}": value for name, value in called.items()}
    if judging.pairs and judge.reads_two:
        scores |= _measure_pairs(run, work, judging, judge, pipeline)
    scores = {name: round(value, 4) for name, value in scores.items()}
    return Outcome(
        score=scores["concept"],
        scores=scores,
        facts=facts,
        picture=work / "strip.png",
        **vars(taught),
    )


def _teach(run: Run, work: Path, judging: Judging) -> Taught:
    pictures = None
    if judging.masks:
        pictures = work / "masked"
        render_concept(run.data, LOOKS[run.data], pictures, masks=True)
    return teach(run, work, run.options, pictures=pictures)


def _load(pipeline: Any, work: Path, adapter_name: str) -> None:  # noqa: ANN401
    """Load a trained concept, always on."""
    concept = work / "concept.safetensors"
    if concept.exists():
        load_concept(pipeline, concept, adapter_name, route=False)
    else:
        file = "pytorch_lora_weights.safetensors"
        pipeline.load_lora_weights(str(work), weight_name=file, adapter_name=adapter_name)


def _ways(pipeline: DiffusionPipeline, run: Run, judging: Judging) -> list[str]:
    """Return the ways of drawing that a method has: no gate without rows of their own."""
    if run.method == "none":
        return []
    return [name for name, way in judging.ways.items() if not way or adapted_layers(pipeline)]


def _measure_pairs(
    run: Run,
    work: Path,
    judging: Judging,
    judge: Judge,
    pipeline: Any,  # noqa: ANN401
) -> dict[str, float]:
    """Teach the concept's partner too, and score pictures of both."""
    if run.method != "none":
        pictures_of(judge.partner)  # those for tuning are rendered when they are first used
        options = {**run.options, "token": PARTNER_TOKEN}
        second = replace(run, data=judge.partner, options=options)
        _teach(second, work / PARTNER, judging)
        _load(pipeline, work / PARTNER, PARTNER)
        if adapted_layers(pipeline):
            mix(pipeline, {"default": 1, PARTNER: 1})
        else:
            pipeline.set_adapters(["default", PARTNER])
    scores = judge.measure_pairs(judge.draw_pairs(pipeline))
    words = {
        "default": (token_of(run), judge.concept["kind"]),
        PARTNER: (PARTNER_TOKEN, LOOKS[judge.partner]["kind"]),
    }
    for way in _ways(pipeline, run, judging):
        with routed(pipeline, words, judging.ways[way]):
            called = judge.measure_pairs(judge.draw_pairs(pipeline))
        scores |= {f"{way}_{name}": value for name, value in called.items()}
    return scores


@contextmanager
def routed(
    pipeline: DiffusionPipeline, words: Mapping[str, tuple[str, str]], way: Mapping[str, Any]
) -> Generator[None]:
    """Inside the block, concepts act on their prompts alone, and guidance leads from the base.

    One pass draws LoLDU's conditional and unconditional rows. A LoRA needs a pass for each.

    Args:
        pipeline: The pipeline.
        words: Token and class of every concept, by adapter name.
        way: How they are drawn, an entry of `Judging.ways`.
    """
    if adapted_layers(pipeline):
        gate = {name: value for name, value in way.items() if name != "class_word"}
        called = {
            name: " ".join(both) if way.get("class_word") else both[0]
            for name, both in words.items()
        }
        route_concepts(pipeline, called, **gate)
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
