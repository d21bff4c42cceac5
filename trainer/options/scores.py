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
    # Train without scores if the models that measure them cannot be loaded; the log says so. By
    # default, such a run does not start.
    scores_optional: bool = option(False, needs="validation_scores", resume="may_change")
    # Pictures of each prompt to score; the sheet shows the first. With one or two a score moves by
    # chance as much as by training, many take long.
    validation_images: int = option(4, at_least=1)
    # Steps between measurements of the held-out loss: the loss of 32 rows whose noise never
    # changes, a few forward passes. It shows overfitting without drawing: it rises while the
    # training loss still falls. 0 turns it off. Without --held_out_pictures it is measured on the
    # training pictures, and then only shows how far the concept is learned.
    held_out_steps: int = option(0, at_least=0, resume="may_change")
    # Pictures of each concept, chosen by the seed, that are not trained on and only measured. One
    # in five is usual; with fewer than five pictures every one is needed for training.
    held_out_pictures: int = option(0, at_least=0, needs="held_out_steps", resume="same")
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
