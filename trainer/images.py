"""A picture file of any kind as RGB."""

import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from trainer.errors import TrainerError


def load_image(path: Path, min_side_px: int = 1, *, background: str = "white") -> Image.Image:
    """A picture as RGB: turned upright by its EXIF tag, transparency laid on the background.

    Of an animation it is the first frame.

    Raises:
        TrainerError: when it cannot be read or its shorter side is under `min_side_px`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as a damaged EXIF block, which does no harm
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
                image.load()
    except Exception as error:  # a damaged file makes decoders fail in ways no list exhausts
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "its content is of no known kind" if unknown else error
        raise TrainerError(
            f"The picture {path} cannot be read; replace or remove it ({reason})."
        ) from error
    if min(image.size) < min_side_px:
        raise TrainerError(
            f"The picture {path} is too small: {image.width} x {image.height} pixels, and its "
            f"shorter side must be at least {min_side_px} (a quarter of --resolution)."
        )
    if image.mode.startswith("I"):  # 16-bit grayscale: convert() would clip it to white
        image = Image.fromarray((np.asarray(image, dtype=np.float32) / 257).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")
