"""Plan the validation pictures that are scored: their prompts and seeds."""

from collections.abc import Sequence
from dataclasses import dataclass

from loldu.errors import LoLDUError
from loldu.prompts import class_after, token_and_class, without_token
from trainer.options.config import Config

PromptSeed = tuple[str, int]
"""A prompt and the seed of its noise."""


def with_seeds(prompts: Sequence[str], config: Config, repeats: int = 1) -> list[PromptSeed]:
    """Return the prompts, in turn `repeats` times, each with the next seed after the run's.

    Sheets, scores and samples all draw from these, so a picture of one can serve another.
    """
    seed = config.optimization.seed
    return [(prompt, seed + index) for index, prompt in enumerate([*prompts] * repeats)]


@dataclass(frozen=True)
class ScoringPlan:
    """Pictures of a concept to draw and score: every prompt with each of its seeds.

    Attributes:
        token: Rare token.
        concept: Prompts with the token.
        others: Prompts without the token, for drift.
    """

    token: str
    concept: list[PromptSeed]
    others: list[PromptSeed]

    @property
    def prompts(self) -> list[str]:
        """Prompts of the concept's pictures without the token, for CLIP-T."""
        return [without_token(prompt, self.token) for prompt, _ in self.concept]


def make_plan(config: Config) -> ScoringPlan:
    """Return the plan of a concept; the validation sheet shows its first picture of each prompt.

    Raises:
        LoLDUError: If no token is known, or no validation prompt has it.
    """
    instance, run, scores = config.instance, config.run, config.scores
    found = token_and_class(instance.instance_prompt or "", config.prior.class_prompt)
    token = instance.placeholder_token or instance.token or (found and found[0])
    if not token:
        raise LoLDUError(
            "--validation_scores cannot derive the rare token from the prompts; give it with "
            "--token, such as --token sks."
        )
    planned = with_seeds(run.validation_prompt, config, scores.validation_images)
    concept = [pair for pair in planned if class_after(pair[0], token) is not None]
    if not concept:
        raise LoLDUError(
            f"--validation_scores needs a --validation_prompt with the token {token}, to score the "
            "concept."
        )
    others = [pair for pair in planned if pair not in concept]
    plain = without_token(instance.instance_prompt or concept[0][0], token)
    if scores.drift_prompt or not others:
        others = with_seeds(scores.drift_prompt or (plain,), config, scores.validation_images)
    for prompt, _ in others:
        if class_after(prompt, token) is not None:
            raise LoLDUError(
                f'--drift_prompt "{prompt}" has the token {token}; give prompts without it.'
            )
    return ScoringPlan(token, concept, others)
