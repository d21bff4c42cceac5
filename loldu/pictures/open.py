"""Open a picture file of any kind as RGB."""

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps, UnidentifiedImageError

from loldu.errors import LoLDUError

logger = logging.getLogger(__name__)

_ROUNDING = 1
"""Largest change of an 8-bit colour between two profiles that both mean sRGB."""


def load_image(
    path: Path, min_side_px: int = 1, *, background: str = "white", to_srgb: bool = True
) -> Image.Image:
    """Return a picture as RGB, upright by its EXIF tag, with the background behind transparency.

    An animation gives its first frame.

    Args:
        path: The file.
        min_side_px: Smallest allowed length of the shorter side.
        background: Colour behind transparent parts.
        to_srgb: Whether to convert colours of another profile to sRGB.

    Raises:
        LoLDUError: If the file cannot be read, or its shorter side is under `min_side_px`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # such as a damaged EXIF block, which does no harm
            with Image.open(path) as file:
                image = ImageOps.exif_transpose(file)
                image.load()
    except Exception as error:  # a damaged file makes decoders fail in ways no list exhausts
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "not a known picture format" if unknown else error
        raise LoLDUError(
            f"The picture {path} cannot be read; replace or remove it ({reason})."
        ) from error
    if min(image.size) < min_side_px:
        raise LoLDUError(
            f"The picture {path} is too small: {image.width} x {image.height} pixels, and its "
            f"shorter side must be at least {min_side_px} (a quarter of --resolution)."
        )
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16-bit grayscale: convert() would clip it to white
        gray = np.asarray(image, dtype=np.float32) / 257
        image = Image.fromarray(gray.round().clip(0, 255).astype(np.uint8))
    if profile and to_srgb:
        try:
            image = _as_srgb(image, profile)
        except (OSError, ImageCms.PyCMSError) as error:
            logger.debug("The colour profile of %s is of no use: %s", path, error)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    return image.convert("RGB")


def _as_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert colours to sRGB; return a picture that has them already as it is."""
    own = {"1": "L", "LA": "L", "L": "L", "CMYK": "CMYK"}.get(image.mode)
    # By way of RGBA, since a palette with transparency must not go straight to RGB.
    colours = image.convert(own) if own else image.convert("RGBA").convert("RGB")
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    cms: Any = ImageCms  # typed in part only
    srgb = cms.createProfile("sRGB")
    converted: Image.Image | None = cms.profileToProfile(colours, source, srgb, outputMode="RGB")
    assert converted is not None  # None is only for conversions in place
    change = ImageChops.difference(converted, colours.convert("RGB"))
    if np.asarray(change).max() <= _ROUNDING:
        return image
    if image.has_transparency_data:
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted
