"""Every option of the scores of a run in progress, with its trade-off."""

from dataclasses import dataclass
from typing import Literal

BestBy = Literal["balance", "dino", "clip_i", "clip_t"]


@dataclass(frozen=True)
class ScoresConfig:
    """How a run in progress is measured."""

    # Score pictures at every validation, into validation.jsonl and validation/scores.png: DINO and
    # CLIP-I against the training pictures, CLIP-T against the prompts, drift of other prompts from
    # what the base draws. They show what the loss does not, for validation_images pictures a prompt
    # each time and two more models in memory.
    validation_scores: bool = False
    # Pictures of each prompt that are scored, of which the sheet shows the first: with one or two a
    # score moves by chance as much as by training, many take long.
    validation_images: int = 4
    # Prompts without the token, whose pictures should stay as the base's; unless given, those
    # validation prompts that lack it, or else the instance prompt without it. Prior preservation
    # protects class prompts: take others to see what it leaves open.
    drift_prompt: tuple[str, ...] = ()
    # CLIP for clip_i, clip_t and drift: a transformers folder or hub id, or
    # open_clip:NAME/PRETRAINED. Scores of different models do not compare.
    clip: str = "open_clip:ViT-B-32-quickgelu/openai"
    # DINO: timm:NAME.TAG, timm:NAME/FILE, or a transformers folder or hub id.
    dino: str = "timm:vit_small_patch16_224.dino"
    # Also keep the result as it was at the step with the best score, in the folder best. balance is
    # (dino + clip_i) / 2 + clip_t - drift: likeness, obedience and damage in one sum, which weighs
    # them by convention. dino and clip_i alone reward copies of the training pictures, clip_t alone
    # what has hardly been trained.
    keep_best: BestBy | None = None
