"""The safety checker of a base, and the blurring of pictures that it objects to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

_SIDE_PX = 6
"""Size that a hidden picture is reduced to: its colours remain, its shapes do not."""


class SafetyChecker:
    """The safety checker of a base, removed from its pipeline.

    A concept file may change any part of a pipeline that it names; it must not reach the checker.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        """Remove the checker from the pipeline, if it has one."""
        # The libraries' annotations say less than what the parts are.
        self._checker: Any = pipeline.components.get("safety_checker")
        self._extract: Any = pipeline.components.get("feature_extractor")
        if self._checker is not None:
            pipeline.register_modules(safety_checker=None)

    def objections(self, images: Sequence[Image.Image]) -> list[bool]:
        """Return for every picture whether the checker objects to it."""
        if self._checker is None:
            return [False] * len(images)
        seen = self._extract(list(images), return_tensors="pt").pixel_values
        _, objections = self._checker(
            clip_input=seen.to(self._checker.device, self._checker.dtype),
            images=[np.asarray(image) for image in images],
        )
        return objections


def hidden(image: Image.Image) -> Image.Image:
    """Return a blurred picture that shows only its colours."""
    return image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.BICUBIC
    )
