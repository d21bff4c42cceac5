"""The pictures of a folder, and the caption, mask and weight of each."""

import hashlib
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from trainer.captions import METADATA, Line, read_metadata, read_text, same_name
from trainer.config import Config, InstanceConfig, PriorConfig
from trainer.errors import Mistakes, TrainerError
from trainer.images import load_image
from trainer.masks import load_mask

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif"})
MASK_ENDING = "-masklabel.png"
"""`dog.jpg` has its mask in `dog-masklabel.png`, the name that OneTrainer and its tools use."""


@dataclass(frozen=True)
class CaptionedImage:
    """A picture file and the prompt it is trained with.

    Attributes:
        path: of the picture.
        caption: its prompt.
        repeats: how often it comes in an epoch.
        mask: the file that marks what is to be learned of it.
    """

    path: Path
    caption: str
    repeats: int = 1
    mask: Path | None = None


def list_images(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name; other files are left out with one line of log.

    Raises:
        TrainerError: when there is no such folder or no picture in it.
    """
    if not folder.is_dir():
        raise TrainerError(f"There is no folder {folder}; give one with the pictures.")
    files = sorted(path for path in folder.iterdir() if not path.is_dir())
    images = [path for path in files if is_picture(path)]
    belonging = {
        found for image in images for end in (".txt", MASK_ENDING) if (found := _beside(image, end))
    }
    others = [
        path.name
        for path in files
        if not is_picture(path) and path not in belonging and path.name != METADATA
    ]
    if others:
        logger.info("Ignoring in %s what is not a picture: %s", folder, ", ".join(others))
    if not images:
        raise TrainerError(
            f"There are no pictures in {folder}; put jpg, png, webp, bmp or gif files there."
        )
    return images


def read_captions(
    images: Sequence[Path], prompts: Sequence[str], flag: str
) -> list[CaptionedImage]:
    """Each picture with the text of its `.txt`, or of its line of `metadata.jsonl`, or a prompt.

    Of several prompts the pictures take one after another.

    Raises:
        TrainerError: when a picture has none of them, or a caption cannot be read; `flag` names the
            option that gives the prompts.
    """
    mistakes = Mistakes()
    lines: dict[str, Line] = {}
    with mistakes.collected():
        lines = read_metadata(images[0].parent, [image.name for image in images])
    captioned = []
    for index, path in enumerate(images):
        line = lines.get(path.name, Line(None))
        prompt = prompts[index % len(prompts)] if prompts else None
        sidecar = _beside(path, ".txt")
        with mistakes.collected():
            caption = read_text(sidecar).strip() if sidecar else line.text or prompt
            if not caption:
                where = sidecar or path.with_suffix(".txt")
                raise TrainerError(f"{path} has no caption: give {flag}, or a prompt in {where}.")
            captioned.append(CaptionedImage(path, caption, line.repeats))
    mistakes.tell()
    return captioned


def find_instances(options: InstanceConfig) -> list[CaptionedImage]:
    """The concept's pictures, captions and masks, opened once: mistakes show before any work.

    Raises:
        TrainerError: for folders, pictures, masks and captions that cannot be used, all of them.
    """
    assert options.instance_data_dir is not None  # the options are checked
    paths = list_images(options.instance_data_dir)
    prompts = [options.instance_prompt] if options.instance_prompt else []
    images = [CaptionedImage(path, "") for path in paths]  # to be opened even without captions
    mistakes = Mistakes()
    with mistakes.collected():
        images = read_captions(paths, prompts, "--instance_prompt")
    images = [replace(image, mask=_beside(image.path, MASK_ENDING)) for image in images]
    with mistakes.collected():
        check_images(images, options.resolution)
    mistakes.tell()
    return images


def find_all_instances(configs: Mapping[str, Config]) -> dict[str, list[CaptionedImage]]:
    """The pictures of every concept.

    Raises:
        TrainerError: for what cannot be used in any of them.
    """
    found: dict[str, list[CaptionedImage]] = {}
    mistakes = Mistakes()
    for name, config in configs.items():
        with mistakes.collected():
            found[name] = find_instances(config.instance)
    mistakes.tell()
    return found


def digest(images: Sequence[CaptionedImage]) -> str:
    """What tells these pictures, captions and masks from others, wherever they are."""
    whole = hashlib.sha256()
    for image in images:
        parts = [image.path.read_bytes(), image.caption.encode()]
        if image.mask is not None:
            parts.append(image.mask.read_bytes())
        for part in parts * image.repeats:
            whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:16]


def own_class_images(prior: PriorConfig) -> list[CaptionedImage]:
    """The person's class pictures; those without a caption take the class prompts in turn.

    Raises:
        TrainerError: when there is neither a caption nor a class prompt.
    """
    own = prior.class_data_dir
    if own is None or not own.is_dir() or not any(map(is_picture, own.iterdir())):
        return []
    return read_captions(list_images(own), prior.class_prompt, "--class_prompt")


def check_images(images: Sequence[CaptionedImage], resolution: int) -> None:
    """Open every picture and mask.

    Raises:
        TrainerError: with a sentence for each that cannot be used.
    """
    mistakes = Mistakes()
    for image in images:
        with mistakes.collected():
            size = load_image(image.path, min_side_px(resolution)).size
            if image.mask is not None:
                load_mask(image.mask, size)
    mistakes.tell()


def min_side_px(resolution: int) -> int:
    """Under a quarter of the resolution there is nothing left to learn but blur."""
    return math.ceil(resolution / 4)


def _beside(image: Path, ending: str) -> Path | None:
    """The file beside a picture that has its name but for the ending, whatever its capitals."""
    named = image.with_name(image.stem + ending)
    if named.is_file():
        return named
    wanted = same_name(named.name)
    for path in image.parent.iterdir():
        if same_name(path.stem + path.suffix.lower()) == wanted and path.is_file():
            return path
    return None


def is_picture(path: Path) -> bool:
    """By its name alone: what cannot be read is told, not left out; hidden files are systems'."""
    return (
        path.suffix.lower() in SUFFIXES
        and not path.name.startswith(".")
        and not path.name.lower().endswith(MASK_ENDING)
    )
