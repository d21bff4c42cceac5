"""The part of pre-training that the two language models share."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pocket.fitting import Losses, fit

WEIGHTS = Path(__file__).parent / "weights"
BUILD = Path.home() / ".cache" / "loldu" / "pocket"
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Amounts:
    """Amounts of everything.

    Attributes:
        texts: Texts to read, each several times.
        steps: Optimizer steps.
        batch: Texts per step; sequences of 128 tokens for the LLaMA.
        learning_rate: Peak learning rate.
    """

    texts: int
    steps: int
    batch: int
    learning_rate: float


def train(
    model: PreTrainedModel,
    losses: Callable[[], Losses],
    settings: Amounts,
    build: Path,
    schedule: Callable[[float], float],
) -> None:
    """Train all weights of a model; an interrupted training continues from `build`.

    Args:
        model: Model to train.
        losses: Function that draws a batch and returns its losses.
        settings: Amounts of everything.
        build: Folder for checkpoints and the log.
        schedule: Function from progress in [0, 1] to a factor on the learning rate.
    """
    model.train()
    fit(
        model.config.model_type,
        model,
        [{"params": list(model.parameters()), "lr": settings.learning_rate}],
        lambda _: losses(),
        build=build,
        steps=settings.steps,
        schedule=schedule,
        warmup_steps=300,
    )


def write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, output: Path) -> None:
    """Write an ordinary transformers folder in half precision."""
    model.half().save_pretrained(output)
    tokenizer.save_pretrained(output)
    _log.info("Wrote %s.", output)
