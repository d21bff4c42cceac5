from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from loldu.base.draw import sample_images
from loldu.base.families import family_of
from loldu.base.open import load_pipeline

PROMPTS = ["a toy", "sks", "a car"]


def _array(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image, dtype=np.int16) for image in images])


def test_a_picture_depends_on_its_seed_not_on_its_batch(base_folder: Path) -> None:
    pipeline = load_pipeline(str(base_folder))

    def draw(prompts: list[str], seeds: list[int], batch_size: int) -> np.ndarray:
        return _array(
            sample_images(
                pipeline,
                prompts,
                seeds,
                num_inference_steps=2,
                batch_size=batch_size,
                progress=False,
            )
        )

    together = draw(PROMPTS, [5, 6, 7], 3)
    assert np.abs(together - draw(PROMPTS, [5, 6, 7], 1)).max() <= 1
    assert np.abs(together[1] - draw(["sks"], [6], 1)[0]).max() <= 1
    assert not np.array_equal(together[1], draw(["sks"], [8], 1)[0])


def test_it_draws_what_the_pipeline_draws(base_folder: Path) -> None:
    pipeline = load_pipeline(str(base_folder))
    ours = sample_images(pipeline, ["a toy"], [3], num_inference_steps=3, progress=False)
    theirs: Any = pipeline(
        "a toy", num_inference_steps=3, generator=torch.Generator().manual_seed(3)
    )
    np.testing.assert_array_equal(_array(ours), _array(theirs.images))


def test_negative_prompts_equal_those_of_the_pipeline(base_folder: Path) -> None:
    pipeline = load_pipeline(str(base_folder))

    def draw(**options: Any) -> np.ndarray:  # noqa: ANN401
        return _array(
            sample_images(
                pipeline, PROMPTS, [3, 4, 5], num_inference_steps=2, batch_size=2, **options
            )
        )

    plain = draw()
    np.testing.assert_array_equal(draw(negative_prompts=[""] * 3), plain)
    without = draw(negative_prompts=["", "", "night"])
    np.testing.assert_array_equal(without[:2], plain[:2])
    theirs: Any = pipeline(
        PROMPTS[2],
        negative_prompt="night",
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(5),
    )
    np.testing.assert_array_equal(without[2:], _array(theirs.images))
    assert not np.array_equal(without, plain)


def test_seeds_and_prompts_must_match(base_folder: Path) -> None:
    pipeline = load_pipeline(str(base_folder))
    with pytest.raises(ValueError, match="3 prompts but 1 seeds"):
        sample_images(pipeline, PROMPTS, [1])
    with pytest.raises(ValueError, match="3 prompts but 1 negative prompts"):
        sample_images(pipeline, PROMPTS, [1, 2, 3], negative_prompts=[""])


def test_a_prompt_that_is_cut_is_logged_once_in_plain_words(
    pipeline: StableDiffusionPipeline,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    long, fitting = "a" + " red" * 9, "a" + " red" * 4  # each letter is a token, and 14 fit
    family = family_of(pipeline)
    whole = family.encode_text(pipeline, [fitting + " r"])
    cut = family.encode_text(pipeline, [long, fitting])
    assert cut["input_ids"][0, :15].tolist()[:14] == whole["input_ids"][0, :14].tolist()
    sample_images(pipeline, [long], [0], num_inference_steps=1)
    assert caplog.messages == [
        '"a red red red red red red red red red" has 28 tokens, and the base reads 14 of a prompt: '
        '"ed red red red red" is left out; shorten the prompt.'
    ]
    assert "tokens" not in capfd.readouterr().err  # nor do the libraries add theirs
