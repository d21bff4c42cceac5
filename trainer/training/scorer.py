"""The scores of a run in progress: which prompts are drawn and who scores them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch

from loldu.base.source import quiet
from loldu.errors import LoLDUError
from loldu.prompts import class_after, token_and_class, without_token
from trainer.options.config import Config
from trainer.options.scores import ScoresConfig

if TYPE_CHECKING:
    from eval.protocols.live import Pictures

Wanted = tuple[str, int]
"""A prompt and the seed of its noise."""


@runtime_checkable
class Scorer(Protocol):
    """What turns pictures into numbers by name."""

    def score(self, pictures: "Pictures") -> dict[str, float]:
        """dino, clip_i, clip_t and drift, and whatever else it knows."""
        ...


def load_scorer(scores: ScoresConfig, device: torch.device | str) -> Scorer:
    """The scorer of `eval`, which is on `device` while it measures and in main memory otherwise.

    Raises:
        LoLDUError: when a package or the weights of a model are missing.
    """
    try:
        from eval.protocols.live import LiveScorer  # its libraries are an extra

        with quiet():
            return LiveScorer(scores.clip, scores.dino, device)
    except ModuleNotFoundError as error:
        raise LoLDUError(
            f"--validation_scores needs the package {error.name}: pip install 'loldu[eval]', or "
            "leave the option out."
        ) from error


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
        LoLDUError: when no token is known, or no validation prompt has it.
    """
    instance, run, scores = config.instance, config.run, config.scores
    told = token_and_class(instance.instance_prompt or "", config.prior.class_prompt)
    token = instance.placeholder_token or instance.token or (told and told[0])
    if not token:
        raise LoLDUError(
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
        raise LoLDUError(
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
            raise LoLDUError(
                f'--drift_prompt "{prompt}" has the token {token}; give prompts without it.'
            )
    return Plan(token, asked, others)
