"""The pictures of a run's concepts: found, checked and inspected before any work."""

from collections.abc import Mapping, Sequence

import numpy as np

from loldu.errors import LoLDUError, Mistakes
from loldu.pictures import inspect
from loldu.pictures.folder import (
    CaptionedImage,
    check_images,
    is_picture,
    list_images,
    open_pictures,
    read_captions,
)
from trainer.options.concepts import concept_configs
from trainer.options.config import Config, InstanceConfig, PriorConfig

_HELD_OUT = 10
"""Stream of the seed for the choice of held-out pictures; the objective has lower ones."""


def find_instances(options: InstanceConfig) -> list[CaptionedImage]:
    """Return the pictures of a concept, after opening every file once.

    Raises:
        LoLDUError: If any picture, mask or caption cannot be used.
    """
    assert options.instance_data_dir is not None  # the options are checked
    prompts = [options.instance_prompt] if options.instance_prompt else []
    return open_pictures(
        options.instance_data_dir, prompts, "--instance_prompt", options.resolution
    )


def find_all_instances(configs: Mapping[str, Config]) -> dict[str, list[CaptionedImage]]:
    """Return the pictures of every concept.

    Raises:
        LoLDUError: If any picture of any concept cannot be used, or all of them are held out.
    """
    found: dict[str, list[CaptionedImage]] = {}
    mistakes = Mistakes()
    for name, config in configs.items():
        with mistakes.collected():
            found[name] = find_instances(config.instance)
            held_out, count = config.scores.held_out_pictures, len(found[name])
            if held_out >= count:
                raise LoLDUError(
                    f"--held_out_pictures {held_out} leaves nothing to train on: "
                    f"{config.instance.instance_data_dir} has {count} pictures; hold out fewer."
                )
    mistakes.tell()
    return found


def split(
    pictures: Sequence[CaptionedImage], config: Config
) -> tuple[list[CaptionedImage], list[CaptionedImage]]:
    """Return the pictures to train on and those that are held out, as the seed chooses them."""
    rng = np.random.default_rng([config.optimization.seed, _HELD_OUT])
    held_out = {*rng.permutation(len(pictures))[: config.scores.held_out_pictures].tolist()}
    trained = [picture for index, picture in enumerate(pictures) if index not in held_out]
    return trained, [pictures[index] for index in sorted(held_out)]


def own_class_images(prior: PriorConfig) -> list[CaptionedImage]:
    """Return the person's own class pictures; those without a caption take the class prompts.

    Raises:
        LoLDUError: If a picture has no caption and there is no class prompt.
    """
    own = prior.class_data_dir
    if own is None or not own.is_dir() or not any(map(is_picture, own.iterdir())):
        return []
    return read_captions(list_images(own), prior.class_prompt, "--class_prompt")


def report(pictures: Sequence[CaptionedImage], options: InstanceConfig, prior: PriorConfig) -> None:
    """Write a table of a concept's pictures to stderr, and what may spoil the training.

    Raises:
        LoLDUError: If one of the person's own class pictures cannot be used.
    """
    if prior.with_prior_preservation:
        check_images(own_class_images(prior), options.resolution)
    assert options.instance_data_dir is not None  # the options are checked
    setup = inspect.TrainingSetup(
        options.resolution,
        options.center_crop,
        options.instance_prompt,
        prior.class_prompt,
        options.token,
        options.placeholder_token,
        options.aspect_buckets,
    )
    inspect.report(pictures, options.instance_data_dir, setup)


def inspect_only(config: Config) -> None:
    """Report on the pictures of every concept, without training (`--doctor_only`).

    Raises:
        LoLDUError: If the run could not start with these pictures.
    """
    configs = concept_configs(config)
    for name, pictures in find_all_instances(configs).items():
        report(pictures, configs[name].instance, configs[name].prior)
