"""Reference settings and pictures for the studio."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from loldu import load_concept, set_concepts
from loldu.base.config import BaseModelConfig
from loldu.base.draw import sample_images
from loldu.base.open import load_pipeline
from webui.drawing.settings import Settings, Used
from webui.drawing.studio import Picture, Task

PROMPT = "a photo of a sks toy"
TASK = Task((PROMPT, PROMPT), (5, 6), "dark", num_inference_steps=2, guidance_scale=3.0)
SETTINGS = Settings(
    prompt="a photo of a sks toy,\nNegative prompt: no, «ünï»",
    negative_prompt="blurry",
    seed=2**32 - 1,
    num_inference_steps=20,
    guidance_scale=7.5,
    width=16,
    height=16,
    noise_scheduler="PNDMScheduler",
    base={"pretrained_model_name_or_path": "base", "clip_skip": 1, "fingerprint": "0123"},
    concepts=(Used("rabbit", "abcd", 0.8), Used("a, <b>house</b>", "ef01", 1.0)),
)


def pixels(images: Sequence[Image.Image | Picture]) -> list[bytes]:
    plain = (each.image if isinstance(each, Picture) else each for each in images)
    return [np.asarray(image).tobytes() for image in plain]


def assert_same(row: Sequence[Image.Image | Picture], expected: Sequence[bytes]) -> None:
    """Compare pictures: a batch and single pictures may round a channel to neighboring levels."""
    for picture, other in zip(pixels(row), expected, strict=True):
        levels = np.frombuffer(picture, np.uint8).astype(int)
        assert np.abs(levels - np.frombuffer(other, np.uint8)).max() <= 1


def drawn_apart(
    base: Path,
    concepts: dict[Path, float] | None = None,
    task: Task = TASK,
    **options: Any,  # noqa: ANN401
) -> list[bytes]:
    """Return the same pictures from a new pipeline, one at a time, with rows chosen by hand.

    Under guidance a batch holds the unconditional row and then the prompt's. A concept without a
    token is in both; one with a token is in the second, if the prompt has it.
    """
    pipeline = load_pipeline(BaseModelConfig(str(base), **options))
    tokens: dict[str, str | None] = {}
    strengths = {f"apart-{place}": each for place, each in enumerate((concepts or {}).values())}
    for name, path in zip(strengths, concepts or (), strict=True):
        tokens[name] = load_concept(pipeline, path, name, route=False).metadata.get("token")
    images = []
    for prompt, seed in zip(task.prompts, task.seeds, strict=True):
        always = {name: strengths[name] for name, token in tokens.items() if token is None}
        called = {
            name: strengths[name] for name, token in tokens.items() if token in prompt.split()
        }
        if tokens:
            set_concepts(pipeline, [always or None, always | called or None])
        images += sample_images(
            pipeline,
            [prompt],
            [seed],
            negative_prompts=[task.negative_prompt],
            num_inference_steps=2,
            guidance_scale=3.0,
        )
    return pixels(images)
