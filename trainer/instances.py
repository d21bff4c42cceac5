"""Pictures and captions from a folder, as square crops ready for the VAE."""

import hashlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image, ImageOps
from torch import Tensor

from trainer.config import InstanceConfig
from trainer.errors import TrainerError

logger = logging.getLogger(__name__)

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
RANDOM_CROPS = 4
"""Latents are cached, so the random crops of an oblong picture are drawn once: this many."""


_CROPS = 0
"""The seed's stream for crops; those of the loop begin at 1."""


@dataclass(frozen=True)
class CaptionedImage:
    """A picture file and the prompt it is trained with."""

    path: Path
    caption: str


def list_images(folder: Path) -> list[Path]:
    """The pictures of a folder, sorted by name; other files are left out with one line of log.

    Raises:
        TrainerError: when there is no such folder or no picture in it.
    """
    if not folder.is_dir():
        raise TrainerError(f"There is no folder {folder}; give one with the pictures.")
    entries = sorted(folder.iterdir())
    images = [path for path in entries if path.suffix.lower() in SUFFIXES and path.is_file()]
    others = [
        path.name
        for path in entries
        if path.is_file() and path not in images and path.suffix.lower() != ".txt"
    ]
    if others:
        logger.info("Ignoring in %s what is not a picture: %s", folder, ", ".join(others))
    if not images:
        raise TrainerError(
            f"There are no pictures in {folder}; put jpg, png, webp or bmp files there."
        )
    return images


def read_captions(images: list[Path], prompt: str | None, flag: str) -> list[CaptionedImage]:
    """Each picture with its `.txt` sidecar's text, or else the prompt.

    Raises:
        TrainerError: when a picture has neither, or a caption that is not text; `flag` names the
            option that gives the prompt.
    """
    captioned = []
    for path in images:
        sidecar = path.with_suffix(".txt")
        try:
            caption = sidecar.read_text(encoding="utf-8").strip() if sidecar.is_file() else prompt
        except UnicodeDecodeError as error:
            raise TrainerError(
                f"The caption {sidecar} is not UTF-8 text; save it as that."
            ) from error
        if not caption:
            raise TrainerError(f"{path} has no caption: give {flag}, or a prompt in {sidecar}.")
        captioned.append(CaptionedImage(path, caption))
    return captioned


def find_instances(options: InstanceConfig) -> list[CaptionedImage]:
    """The concept's pictures and captions, each opened once: mistakes show before any work.

    Raises:
        TrainerError: for a folder, picture or caption that cannot be used.
    """
    assert options.instance_data_dir is not None  # the options are checked
    images = read_captions(
        list_images(options.instance_data_dir), options.instance_prompt, "--instance_prompt"
    )
    for image in images:
        load_image(image.path, _min_side_px(options.resolution))
    return images


def digest(images: list[CaptionedImage]) -> str:
    """What tells these pictures and captions from others, wherever they are."""
    whole = hashlib.sha256()
    for image in images:
        for part in (image.path.read_bytes(), image.caption.encode()):
            whole.update(hashlib.sha256(part).digest())
    return whole.hexdigest()[:16]


def load_image(path: Path, min_side_px: int = 1) -> Image.Image:
    """A picture as RGB: turned upright by its EXIF tag, transparency laid on white.

    Raises:
        TrainerError: when it cannot be read or its shorter side is under `min_side_px`.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise TrainerError(
            f"The picture {path} cannot be read; replace or remove it ({error})."
        ) from error
    if min(image.size) < min_side_px:
        raise TrainerError(
            f"The picture {path} is too small: {image.width} x {image.height} pixels, and its "
            f"shorter side must be at least {min_side_px} (a quarter of --resolution)."
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    elif image.mode.startswith("I"):  # 16-bit grayscale: convert() would clip it to white
        image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).astype(np.uint8))
    return image.convert("RGB")


def square_crops(
    image: Image.Image,
    resolution: int,
    *,
    center_crop: bool,
    random_flip: bool,
    rng: np.random.Generator,
) -> Iterator[Float[Tensor, "3 resolution resolution"]]:
    """The views a picture is trained in, in [-1, 1]: crops, and their mirror images if asked."""
    scale = resolution / min(image.size)
    size = [max(resolution, round(side * scale)) for side in image.size]
    resized = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    spare_x, spare_y = size[0] - resolution, size[1] - resolution
    if center_crop or spare_x == spare_y == 0:
        corners = [(spare_x // 2, spare_y // 2)]
    else:
        corners = [
            (int(rng.integers(spare_x + 1)), int(rng.integers(spare_y + 1)))
            for _ in range(RANDOM_CROPS)
        ]
    for x, y in corners:
        crop = np.asarray(resized.crop((x, y, x + resolution, y + resolution)), dtype=np.float32)
        view = torch.from_numpy(crop / 127.5 - 1).permute(2, 0, 1)
        yield view
        if random_flip:
            yield view.flip(-1)


def load_views(
    images: list[CaptionedImage],
    resolution: int,
    *,
    center_crop: bool,
    random_flip: bool,
    seed: int,
) -> Iterator[tuple[int, Float[Tensor, "3 resolution resolution"]]]:
    """Every view of every picture with the picture's index, read one file at a time.

    Raises:
        TrainerError: when a picture cannot be read or is smaller than a quarter of the resolution.
    """
    for index, captioned in enumerate(images):
        image = load_image(captioned.path, _min_side_px(resolution))
        rng = np.random.default_rng([seed, _CROPS, index])
        for view in square_crops(
            image, resolution, center_crop=center_crop, random_flip=random_flip, rng=rng
        ):
            yield index, view


def _min_side_px(resolution: int) -> int:
    """Under a quarter of the resolution there is nothing left to learn but blur."""
    return math.ceil(resolution / 4)
