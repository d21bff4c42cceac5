"""The pictures of a run's concepts, checked before any work."""

from collections.abc import Mapping
from dataclasses import replace

from loldu.errors import Mistakes
from loldu.pictures.folder import (
    MASK_ENDING,
    CaptionedImage,
    beside,
    check_images,
    is_picture,
    list_images,
    read_captions,
)
from trainer.options.config import Config, InstanceConfig, PriorConfig


def find_instances(options: InstanceConfig) -> list[CaptionedImage]:
    """The concept's pictures, captions and masks, opened once: mistakes show before any work.

    Raises:
        LoLDUError: for folders, pictures, masks and captions that cannot be used, all of them.
    """
    assert options.instance_data_dir is not None  # the options are checked
    paths = list_images(options.instance_data_dir)
    prompts = [options.instance_prompt] if options.instance_prompt else []
    images = [CaptionedImage(path, "") for path in paths]  # to be opened even without captions
    mistakes = Mistakes()
    with mistakes.collected():
        images = read_captions(paths, prompts, "--instance_prompt")
    images = [replace(image, mask=beside(image.path, MASK_ENDING)) for image in images]
    with mistakes.collected():
        check_images(images, options.resolution)
    mistakes.tell()
    return images


def find_all_instances(configs: Mapping[str, Config]) -> dict[str, list[CaptionedImage]]:
    """The pictures of every concept.

    Raises:
        LoLDUError: for what cannot be used in any of them.
    """
    found: dict[str, list[CaptionedImage]] = {}
    mistakes = Mistakes()
    for name, config in configs.items():
        with mistakes.collected():
            found[name] = find_instances(config.instance)
    mistakes.tell()
    return found


def own_class_images(prior: PriorConfig) -> list[CaptionedImage]:
    """The person's class pictures; those without a caption take the class prompts in turn.

    Raises:
        LoLDUError: when there is neither a caption nor a class prompt.
    """
    own = prior.class_data_dir
    if own is None or not own.is_dir() or not any(map(is_picture, own.iterdir())):
        return []
    return read_captions(list_images(own), prior.class_prompt, "--class_prompt")
