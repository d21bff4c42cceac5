"""A concept for every picture, drawn by an ordinary diffusers pipeline under guidance."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline

from loldu import LoLDUConfig, load_concept, mix, save_concept, set_concepts, unload_concept

MakePipeline = Callable[[], StableDiffusionPipeline]


def test_a_pipeline_draws_a_concept_for_every_picture(
    make_pipeline: MakePipeline, draw: Callable[..., np.ndarray], tmp_path: Path
) -> None:
    source, pipeline = make_pipeline(), make_pipeline()
    options = {"r": 6, "init_weights": False}
    source.unet.add_adapter(LoLDUConfig(**options), "a")
    source.text_encoder.add_adapter(LoLDUConfig(**options), "a")
    load_concept(pipeline, save_concept(source, tmp_path / "a", "a"), "a")
    with pytest.warns(UserWarning, match="Already found a `peft_config`"):
        source.unet.add_adapter(LoLDUConfig(**options | {"r": 4, "seed": 1}), "b")
    load_concept(pipeline, save_concept(source, tmp_path / "b", "b"), "b")

    prompts, seeds, rows = ["a fox", "the fox", "a hen"], [5, 6, 7], ["a", "b", None]
    alone = []
    for row, prompt, seed in zip(rows, prompts, seeds, strict=True):
        mix(pipeline, {row: 1.0} if row else {})
        alone.append(draw(pipeline, [prompt], [seed])[0])
    mix(pipeline, {"a": 1.0})
    same = draw(pipeline, prompts, seeds)
    set_concepts(pipeline, rows)
    mixed = draw(pipeline, prompts, seeds)
    np.testing.assert_allclose(mixed, np.stack(alone), atol=2e-5)
    # Every concept shows, or the comparison above would say little.
    assert min(abs(same[i] - mixed[i]).max() for i in (1, 2)) > 1e-3
    assert abs(draw(make_pipeline(), prompts, seeds)[0] - mixed[0]).max() > 1e-3
    with pytest.raises(ValueError, match=r"gave 3 concepts, and layer .* a batch of 2"):
        draw(pipeline, prompts[:2], seeds[:2])
    for name in ("a", "b"):
        unload_concept(pipeline, name)
    plain = make_pipeline()
    assert np.array_equal(draw(pipeline, prompts, seeds), draw(plain, prompts, seeds))
    load_concept(pipeline, tmp_path / "a", "a")
    np.testing.assert_allclose(draw(pipeline, prompts[:1], seeds[:1])[0], alone[0], atol=1e-6)
