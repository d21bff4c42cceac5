"""Scores of a training in progress."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from eval.config import ModelsConfig
from eval.metrics.functional import clip_t, drift, image_similarity
from eval.protocols.score import Extractors


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


class LiveScorer:
    """DINO, CLIP-I, CLIP-T and drift, by models that are on the device only while they measure."""

    def __init__(self, clip: str, dino: str, device: torch.device | str) -> None:
        """Load both models into main memory.

        Raises:
            LoLDUError: If one of them has no weights here.
        """
        self._extractors = Extractors.load(ModelsConfig(clip=clip, dino=dino, device="cpu"))
        self._device = device

    def score(self, pictures: Pictures) -> dict[str, float]:
        """Return the scores of a step's pictures."""
        models = (self._extractors.clip, self._extractors.dino)
        try:
            for model in models:
                model.to(self._device)
            return self._score(pictures)
        finally:
            for model in models:
                model.to("cpu")

    def _score(self, pictures: Pictures) -> dict[str, float]:
        clip, dino = self._extractors.clip, self._extractors.dino
        drawn = clip.encode_images(pictures.concept)
        return {
            "dino": image_similarity(
                dino.encode_images(pictures.concept), dino.encode_images(pictures.true)
            ),
            "clip_i": image_similarity(drawn, clip.encode_images(pictures.true)),
            "clip_t": clip_t(drawn, clip.encode_texts(pictures.prompts)),
            "drift": drift(clip.encode_images(pictures.others), clip.encode_images(pictures.base)),
        }
