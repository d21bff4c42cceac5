"""Captions that are dropped, and tags that are dropped or shuffled, from step to step."""

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from loldu.base.stable_diffusion import STATES, embed
from loldu.pictures.folder import CaptionedImage
from trainer.__main__ import run
from trainer.options.config import Config
from trainer.training.cache import build_cache
from trainer.training.instances import find_instances
from trainer.training.objective import DreamBooth

MakeConfig = Callable[..., Config]
TAGS = ["--instance_prompt", "sks, b, c, d", "--shuffle_tags", "--tag_dropout", "0.3"]


def concept_of(pipeline: StableDiffusionPipeline, config: Config, classes: int = 0) -> DreamBooth:
    images = find_instances(config.instance)
    class_images = [CaptionedImage(image.path, "a, toy") for image in images[:classes]]
    options, captions = config.instance, config.captions
    cache = build_cache(pipeline, images, class_images, options, seed=0, captions=captions)
    return DreamBooth(pipeline, cache, config)


def states(concept: DreamBooth, step: int) -> list[torch.Tensor]:
    return list(concept.rows(concept.draw(step)).conditioning[STATES])


def test_a_dropped_caption_is_the_empty_prompt(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    config = make_config("--caption_dropout", "0.25", "--train_batch_size", "100")
    concept = concept_of(pipeline, config, classes=1)
    empty, full, of_class = embed(pipeline, ["", "a photo of sks toy", "a, toy"])
    known = {"": empty, "full": full}
    seen: Counter[str] = Counter()
    for step in range(4):
        rows = states(concept, step)
        for row in rows[:100]:
            seen.update(name for name, state in known.items() if torch.equal(row, state))
        assert all(torch.equal(row, of_class) for row in rows[100:])
    assert seen[""] + seen["full"] == 400
    assert seen[""] == pytest.approx(100, abs=30)  # more than three deviations


def test_tags_change_and_class_prompts_do_not(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    config = make_config(*TAGS, "--train_batch_size", "50")
    concept, again = (concept_of(pipeline, config, classes=1) for _ in range(2))
    rows = states(concept, 7)
    orders = [order for size in range(4) for order in itertools.permutations("bcd", size)]
    known = embed(pipeline, [", ".join(["sks", *order]) for order in orders])
    assert all(any(torch.equal(row, state) for state in known) for row in rows[:50])
    assert len({row.numpy().tobytes() for row in rows[:50]}) > 8
    assert all(torch.equal(*pair) for pair in zip(rows, states(again, 7), strict=True))
    assert not all(torch.equal(*pair) for pair in zip(rows, states(again, 8), strict=True))
    of_class = embed(pipeline, ["a, toy"])[0]
    assert all(torch.equal(row, of_class) for row in rows[50:])


def test_two_processes_share_the_captions_of_one(
    pipeline: StableDiffusionPipeline, make_config: MakeConfig
) -> None:
    more = [*TAGS, "--caption_dropout", "0.3"]
    wide = concept_of(pipeline, make_config(*more, "--train_batch_size", "8")).draw(3)
    narrow = concept_of(pipeline, make_config(*more, "--train_batch_size", "4"))
    parts = [narrow.draw(3, process, 2).prompts for process in range(2)]
    assert torch.equal(wide.prompts, torch.cat(parts))


def test_resuming_with_changing_captions_is_bit_identical(flags: list[str], tmp_path: Path) -> None:
    common = [*flags, *TAGS, "--caption_dropout", "0.3", "--train_text_encoder"]
    common += ["--checkpointing_steps", "2", "--no_sample_at_end", "--lora_file", "no"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run([*common, "--output_dir", str(whole)]) == 0
    checkpoint = ["--resume", str(whole / "checkpoint-000002")]
    assert run([*common, *checkpoint, "--output_dir", str(resumed)]) == 0
    name = "checkpoint-000004/trained.safetensors"
    ours, theirs = load_file(whole / name), load_file(resumed / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
