"""Scores of a run in progress: what the trainer finds here by name when a run asks for them."""

from __future__ import annotations

import torch

from eval.config import ModelsConfig
from eval.metrics import clip_t, drift, image_similarity
from eval.score import Extractors
from trainer.scorer import Pictures


class LiveScorer:
    """DINO, CLIP-I, CLIP-T and drift, by models that are on the device only while they measure."""

    def __init__(self, clip: str, dino: str, device: torch.device | str) -> None:
        """Load both models into main memory.

        Raises:
            EvalError: If one of them has no weights here.
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
