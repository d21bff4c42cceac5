"""Options of the scores of a run in progress, with their trade-offs."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from eval.config import CLIP, DINO
from eval.metrics import headline_metrics
from loldu.options import option

_HIGHER_IS_BETTER = [metric.name for metric in headline_metrics() if metric.higher_is_better]
if TYPE_CHECKING:
    BestBy = str  # the names are known at run time only
else:
    BestBy = Literal["balance", *_HIGHER_IS_BETTER]


@dataclass(frozen=True)
class ScoresConfig:
    """How a run in progress is measured."""

    # Score pictures at every validation, into validation.jsonl and validation/scores.png: DINO and
    # CLIP-I against the training pictures, CLIP-T against the prompts, drift of other prompts from
    # the base's pictures. Scores show what the loss does not, but each validation draws
    # validation_images pictures per prompt, and two more models stay in memory.
    validation_scores: bool = False
    # Pictures of each prompt to score; the sheet shows the first. With one or two a score moves by
    # chance as much as by training, many take long.
    validation_images: int = option(4, at_least=1)
    # Prompts without the token, whose pictures should stay like the base's. By default the
    # validation prompts without the token, or else the instance prompt with its token removed.
    # Prior preservation protects class prompts: use others to see what remains unprotected.
    drift_prompt: tuple[str, ...] = option((), per_concept=True)
    # CLIP model for clip_i, clip_t and drift: a transformers folder or hub id, or
    # open_clip:NAME/PRETRAINED. Scores of different models do not compare.
    clip: str = CLIP
    # DINO model: timm:NAME.TAG, timm:NAME/FILE, or a transformers folder or hub id.
    dino: str = DINO
    # Also keep the result of the step with the best score, in the folder best. balance is
    # (dino + clip_i) / 2 + clip_t - drift: likeness, prompt following and damage in one sum with
    # conventional weights. dino and clip_i alone reward copies of the training pictures, clip_t
    # alone rewards what is hardly trained.
    keep_best: BestBy | None = None
