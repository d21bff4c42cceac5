from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from loldu.base.stable_diffusion import STATES, embed
from loldu.errors import LoLDUError
from loldu.pictures.crop import load_views
from loldu.pictures.folder import CaptionedImage
from trainer.options.config import InstanceConfig
from trainer.training.cache import build_cache
from trainer.training.instances import find_instances
from trainer.training.objective import view_at


def test_cached_moments_are_those_of_the_vae_and_views_belong_to_their_picture(
    pipeline: StableDiffusionPipeline, pictures: Path
) -> None:
    options = InstanceConfig(pictures, "sks", resolution=16, random_flip=True)
    images = find_instances(options)
    classes = [CaptionedImage(images[0].path, "a toy")]
    cache = build_cache(pipeline, images, classes, options, seed=0)
    assert cache.instances == [range(0, 2), range(2, 4), range(4, 6)]
    assert cache.classes == [range(6, 8)]
    views = load_views([*images, *classes], 16, center_crop=True, random_flip=True, seed=0)
    for row, view in enumerate(views):
        with torch.no_grad():
            posterior = pipeline.vae.encode(view.pixels[None]).latent_dist
        scale = pipeline.vae.config.scaling_factor
        torch.testing.assert_close(cache.mean[row], posterior.mean[0] * scale)
        torch.testing.assert_close(cache.std[row], posterior.std[0] * scale)
    embeddings = cache.conditioning[STATES]
    prompts = [embeddings[index] for index in cache.prompt_of_view]
    assert len(embeddings) == 2
    torch.testing.assert_close(prompts[0], embed(pipeline, ["sks"])[0])
    torch.testing.assert_close(prompts[7], embed(pipeline, ["a toy"])[0])


def test_a_repeated_picture_is_repeated_in_every_epoch(
    pipeline: StableDiffusionPipeline, pictures: Path
) -> None:
    (pictures / "metadata.jsonl").write_text('{"file_name": "b.png", "repeats": 3}\n')
    options = InstanceConfig(pictures, "sks", resolution=16)
    cache = build_cache(pipeline, find_instances(options), [], options, seed=0)
    assert len(cache.mean) == 3
    for epoch in range(4):
        drawn = [view_at(cache.instances, 5 * epoch + place, seed=0, kind=0) for place in range(5)]
        assert sorted(drawn) == [0, 1, 1, 1, 2]


def test_cached_embeddings_are_those_of_the_text_encoder(pipeline: StableDiffusionPipeline) -> None:
    tokens = pipeline.tokenizer(
        "a toy", padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = pipeline.text_encoder(tokens).last_hidden_state
    torch.testing.assert_close(embed(pipeline, ["a toy"]), expected)


def test_a_vae_that_overflows_gives_one_clear_error(
    pipeline: StableDiffusionPipeline, pictures: Path
) -> None:
    pipeline.vae.quant_conv.weight.data.fill_(torch.inf)
    options = InstanceConfig(pictures, "sks", resolution=16)
    with pytest.raises(LoLDUError, match=r"inf or NaN for .*a\.png.*--vae"):
        build_cache(pipeline, find_instances(options), [], options, seed=0)
