"""The safety checker of a base, and what becomes of a picture that it objects to."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from diffusers import DiffusionPipeline
from PIL import Image

_SIDE_PX = 6
"""What is left of a hidden picture: its colours, and no shape."""


class SafetyChecker:
    """The checker that came with a base.

    It is taken off the pipeline: a concept file may change any part of a pipeline that it names,
    and is not to reach this one.
    """

    def __init__(self, pipeline: DiffusionPipeline) -> None:
        """Take the checker, if there is one."""
        # The libraries' annotations say less than what the parts are.
        self._checker: Any = pipeline.components.get("safety_checker")
        self._extract: Any = pipeline.components.get("feature_extractor")
        if self._checker is not None:
            pipeline.register_modules(safety_checker=None)

    def objections(self, images: Sequence[Image.Image]) -> list[bool]:
        """Which pictures are not to be shown."""
        if self._checker is None:
            return [False] * len(images)
        seen = self._extract(list(images), return_tensors="pt").pixel_values
        _, objections = self._checker(
            clip_input=seen.to(self._checker.device, self._checker.dtype),
            images=[np.asarray(image) for image in images],
        )
        return objections


def hidden(image: Image.Image) -> Image.Image:
    """A picture of which only the colours are left."""
    return image.resize((_SIDE_PX, _SIDE_PX), Image.Resampling.BOX).resize(
        image.size, Image.Resampling.BICUBIC
    )
