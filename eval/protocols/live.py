"""Score the validation pictures of a training in progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from eval.config import ModelsConfig
from eval.encoders.encoder import Encoder, TextEncoder
from eval.encoders.load import load_encoders
from eval.metrics import Sample, headline_metrics


@dataclass(frozen=True)
class Pictures:
    """Pictures to score at one step.

    Attributes:
        true: Real pictures of the concept.
        concept: Pictures drawn with the adapter from prompts with the rare token.
        prompts: Prompt of each of those, without the token.
        others: Pictures drawn with the adapter from prompts without the token.
        base: Pictures that the base draws from the same prompts and seeds as `others`.
    """

    true: Sequence[Image.Image]
    concept: Sequence[Image.Image]
    prompts: Sequence[str]
    others: Sequence[Image.Image]
    base: Sequence[Image.Image]


class LiveScorer:
    """Measures the headline metrics; its encoders are on the device only while they are used."""

    def __init__(self, clip: str, dino: str, device: torch.device | str) -> None:
        """Load the encoders into main memory.

        Raises:
            LoLDUError: If the weights of one are missing.
        """
        self._metrics = headline_metrics()
        names = [name for metric in self._metrics for name in metric.encoders]
        models = ModelsConfig(clip=clip, dino=dino)
        self._encoders = load_encoders(names, models, "cpu")
        self._device = device

    def score(self, pictures: Pictures) -> dict[str, float]:
        """Return the scores of one step by metric."""
        try:
            for encoder in self._encoders.values():
                encoder.to(self._device)
            return self._score(pictures)
        finally:
            for encoder in self._encoders.values():
                encoder.to("cpu")

    def _score(self, pictures: Pictures) -> dict[str, float]:
        clip = self._encoders["clip"]
        assert isinstance(clip, TextEncoder)
        concept = Sample(
            generated=_Features(self._encoders, pictures.concept),
            real=_Features(self._encoders, pictures.true),
            prompts=pictures.prompts,
            prompt_features=clip.encode_texts(pictures.prompts),
        )
        others = Sample(
            generated=_Features(self._encoders, pictures.others),
            base=_Features(self._encoders, pictures.base),
        )
        return {
            metric.name: metric.score(others if metric.against == "base" else concept)
            for metric in self._metrics
        }


class _Features(dict[str, Float[Tensor, "n d"]]):
    """Features of some pictures by encoder, computed when a metric reads them."""

    def __init__(self, encoders: Mapping[str, Encoder], images: Sequence[Image.Image]) -> None:
        super().__init__()
        self._encoders, self._images = encoders, images

    def __missing__(self, encoder: str) -> Tensor:
        self[encoder] = self._encoders[encoder].encode_images(self._images)
        return self[encoder]
