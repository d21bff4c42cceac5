"""What measures a run in progress, and what it is shown.

`eval` does the measuring. It stands above the trainer, which therefore finds it by name, and only
when a run asks for scores.
"""

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image

from trainer.base import quiet
from trainer.config import Config
from trainer.errors import TrainerError
from trainer.prompts import class_after, token_and_class, without_token
from trainer.scores_config import ScoresConfig

SCORER = "eval.live"

Wanted = tuple[str, int]
"""A prompt and the seed of its noise."""


@dataclass(frozen=True)
class Pictures:
    """What is measured at one step.

    Attributes:
        true: the concept's own.
        concept: drawn with the adapter, of prompts with the rare token.
        prompts: of each of those, without the token.
        others: drawn with the adapter, of prompts without the token.
        base: what the base draws for the same prompts from the same noise.
    """

    true: Sequence[Image.Image]
    concept: Sequence[Image.Image]
    prompts: Sequence[str]
    others: Sequence[Image.Image]
    base: Sequence[Image.Image]


@runtime_checkable
class Scorer(Protocol):
    """What turns pictures into numbers by name."""

    def score(self, pictures: Pictures) -> dict[str, float]:
        """dino, clip_i, clip_t and drift, and whatever else it knows."""
        ...


def load_scorer(scores: ScoresConfig, device: torch.device | str) -> Scorer:
    """The scorer of `eval`, which is on `device` while it measures and in main memory otherwise.

    Raises:
        TrainerError: when a package or the weights of a model are missing.
    """
    try:
        live: Any = importlib.import_module(SCORER)
    except ModuleNotFoundError as error:
        raise TrainerError(
            f"--validation_scores needs the package {error.name}: pip install 'loldu[eval]', or "
            "leave the option out."
        ) from error
    with quiet():
        return live.LiveScorer(scores.clip, scores.dino, device)


@dataclass(frozen=True)
class Plan:
    """What is drawn for the scores of a concept: every prompt from each of its seeds."""

    token: str
    asked: list[Wanted]
    others: list[Wanted]

    @property
    def prompts(self) -> list[str]:
        """What CLIP-T compares with: the prompts without the token."""
        return [without_token(prompt, self.token) for prompt, _ in self.asked]


def make_plan(config: Config) -> Plan:
    """Tell prompts with the token from those without; the first of each are the sheet's pictures.

    Raises:
        TrainerError: when no token is known, or no validation prompt has it.
    """
    instance, run, scores = config.instance, config.run, config.scores
    told = token_and_class(instance.instance_prompt or "", config.prior.class_prompt)
    token = instance.placeholder_token or instance.token or (told and told[0])
    if not token:
        raise TrainerError(
            "--validation_scores cannot tell the rare token from the prompts; give it with "
            "--token, such as --token sks."
        )
    count, seed = len(run.validation_prompt), config.optimization.seed
    wanted = [
        (prompt, seed + index + count * repeat)
        for repeat in range(scores.validation_images)
        for index, prompt in enumerate(run.validation_prompt)
    ]
    asked = [pair for pair in wanted if class_after(pair[0], token) is not None]
    if not asked:
        raise TrainerError(
            f"--validation_scores needs a --validation_prompt with the token {token}, to see "
            "whether the concept is drawn."
        )
    others = [pair for pair in wanted if pair not in asked]
    plain = without_token(instance.instance_prompt or asked[0][0], token)
    if scores.drift_prompt or not others:
        prompts = scores.drift_prompt or (plain,)
        others = [
            (prompt, seed + index)
            for index, prompt in enumerate(prompts * scores.validation_images)
        ]
    for prompt, _ in others:
        if class_after(prompt, token) is not None:
            raise TrainerError(
                f'--drift_prompt "{prompt}" has the token {token}; give prompts without it.'
            )
    return Plan(token, asked, others)
