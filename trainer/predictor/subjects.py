"""The subjects of a predictor's training: several pictures of each, found, checked and encoded."""

from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from diffusers import DiffusionPipeline
from jaxtyping import UInt8

from eval.protocols.suite_layouts import CUSTOM_CONCEPT, DREAMBOOTH, read_suite
from loldu.errors import LoLDUError, Mistakes
from loldu.pictures.folder import CaptionedImage, digest, open_pictures
from loldu.predict.predictor import pixels_of
from loldu.predict.reader import ReaderConfig
from loldu.prompts import lacks_word
from trainer.options.config import InstanceConfig
from trainer.predictor.options import DataConfig
from trainer.training.cache import Cache, build_cache


@dataclass(frozen=True)
class Subjects:
    """Several pictures of each of many things.

    Attributes:
        pixels: The pictures as the network reads them; the array may be memory-mapped.
        cache: The same pictures as latents, with their prompts: view i is picture i.
        pictures: Pictures of every subject.
        digest: Digest of pictures and prompts.
    """

    pixels: UInt8[np.ndarray, "pictures px px 3"]
    cache: Cache
    pictures: list[range]
    digest: str


def find_subjects(data: DataConfig) -> list[list[CaptionedImage]]:
    """Return the pictures of every subject, after opening every file once.

    Raises:
        LoLDUError: If the folder has no subjects, or one has a single picture, a picture that
            cannot be used, or a prompt without the token.
    """
    folder = data.subjects
    if folder is None or not folder.is_dir():
        where = "is missing" if folder is None else f"{folder} is not a folder"
        raise LoLDUError(f"--subjects {where}; name a folder with a folder for each subject.")
    if any((folder / name).is_file() for name in (DREAMBOOTH, CUSTOM_CONCEPT)):
        named = [(each.real, each.class_name) for each in read_suite(folder)]
    else:
        inside = sorted(path for path in folder.iterdir() if path.is_dir())
        named = [(path, None) for path in inside if not path.name.startswith(".")]
    if not named:
        raise LoLDUError(f"--subjects {folder} has no folders; put each subject into its own.")
    found: list[list[CaptionedImage]] = []
    mistakes = Mistakes()
    for path, class_name in named:
        with mistakes.collected():
            found.append(_pictures(path, class_name, data))
    mistakes.tell()
    return found


def encode_subjects(
    pipeline: DiffusionPipeline,
    found: list[list[CaptionedImage]],
    data: DataConfig,
    reader: ReaderConfig,
) -> Subjects:
    """Encode the pictures of all subjects with the base, and crop them for the network.

    Raises:
        LoLDUError: If a picture cannot be used.
    """
    pictures = [picture for own in found for picture in own]
    views = InstanceConfig(resolution=data.resolution)
    pixels = [
        ((pixels_of(picture.path, reader) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        for picture in pictures
    ]
    ends = [*accumulate(map(len, found), initial=0)]
    return Subjects(
        np.stack(pixels),
        build_cache(pipeline, pictures, [], views, seed=0),
        [range(start, end) for start, end in pairwise(ends)],
        digest(pictures),
    )


def _pictures(path: Path, class_name: str | None, data: DataConfig) -> list[CaptionedImage]:
    """Return the pictures of a subject."""
    prompt = data.prompt.replace("{token}", data.token)
    if class_name is not None:
        prompt = prompt.replace("{class_name}", class_name)
    prompts = [] if "{class_name}" in prompt else [prompt]
    pictures = open_pictures(path, prompts, "--prompt without {class_name}", data.resolution)
    if len(pictures) < 2:
        raise LoLDUError(f"{path} has a single picture; give at least two, or remove the folder.")
    for picture in pictures:
        if lacks_word(picture.caption, data.token, every=True):
            raise LoLDUError(
                f"The prompt of {picture.path} lacks the --token {data.token}: {picture.caption}; "
                "write it there."
            )
    return pictures
