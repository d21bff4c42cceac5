"""Open a picture file of any kind as RGB."""

import io
import logging
import os
import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageChops, ImageCms, UnidentifiedImageError

from loldu.errors import LoLDUError
from loldu.pictures.png import open_without_extras, pixel_depth, scale_transparency

T = TypeVar("T")

logger = logging.getLogger(__name__)

FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "HEIF": (".heic", ".heif", ".hif"),
    "AVIF": (".avif",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "GIF": (".gif",),
}
"""Formats of the pictures that people bring, by Pillow's name, with the endings of their files."""
FORMAT_NAMES = "JPEG, PNG, WebP, HEIC, AVIF, TIFF, BMP or GIF"
"""The same for messages."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""How to turn a picture upright, by its orientation (Exif 3.0, tag 274)."""
_BITS_PER_SAMPLE, _BITS, _UNSCALED = 258, (1, 2, 4, 8, 16), ("F", "I", "LAB")
"""The TIFF tag of the depth, the depths that Pillow scales to 8 bits, and modes it does not."""
_PROGRAMS = ("EPS", "WMF")
"""Formats that Pillow hands to another program to draw."""

_lock, _readers, _filters = threading.Lock(), 0, ExitStack()
"""Number of threads that read pictures, and the filters of warnings to restore after the last."""

_ROUNDING = 1
"""Largest change of an 8-bit colour between two profiles that both mean sRGB."""


def load_image(
    path: Path,
    min_side_px: int = 1,
    *,
    background: str = "white",
    to_srgb: bool = True,
    formats: tuple[str, ...] | None = None,
) -> Image.Image:
    """Return a picture as RGB, upright by its EXIF tag, with the background behind transparency.

    An animation gives its first frame. The result has no metadata, so that nothing turns it again.

    Args:
        path: The file.
        min_side_px: Smallest allowed length of the shorter side.
        background: Colour behind transparent parts.
        to_srgb: Whether to convert colours of another profile to sRGB.
        formats: Pillow's names of the allowed formats; all by default.

    Raises:
        LoLDUError: If the file cannot be read, or its shorter side is under `min_side_px`.
    """
    image = _opened(path, _pixels, formats)
    if min(image.size) < min_side_px:
        raise LoLDUError(
            f"The picture {path} is too small: {image.width} x {image.height} pixels, and its "
            f"shorter side must be at least {min_side_px} (a quarter of --resolution)."
        )
    profile = image.info.get("icc_profile")
    if image.mode.startswith("I"):  # 16-bit grayscale: convert() would clip it to white
        image = _as_8_bits(image)
    if profile and to_srgb:
        try:
            image = _as_srgb(image, profile)
        except (OSError, ImageCms.PyCMSError) as error:
            logger.debug("The colour profile of %s is of no use: %s", path, error)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
    image = image.convert("RGB")
    image.info.clear()
    return image


def image_size(path: Path, formats: tuple[str, ...] | None = None) -> tuple[int, int]:
    """Return width and height of a picture as they are stored, without decoding it.

    Raises:
        LoLDUError: If the file is not a picture that can be read.
    """
    return _opened(path, lambda image: image.size, formats)


def stored_text(path: Path, name: str) -> str | None:
    """Return a text that is stored in a PNG, or None if there is no such file or text."""
    try:
        return _opened(path, lambda image: image.info.get(name), ("PNG",))
    except LoLDUError:
        return None


def upright(image: Image.Image) -> Image.Image:
    """Return a picture turned by its EXIF or XMP orientation, or as it is if that is unreadable.

    Unlike Pillow's `exif_transpose`, this reads one tag and writes none, so that other damaged tags
    do no harm.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged EXIF fails in ways no list exhausts, and the pixels are good
        turn = None
    if turn is None:
        return image
    image = image.transpose(turn)
    for name in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):
        image.info.pop(name, None)
    return image


def _opened(path: Path, read: Callable[[Image.Image], T], formats: tuple[str, ...] | None) -> T:
    """Return what `read` makes of a picture file, which is open but not decoded.

    Raises:
        LoLDUError: If the file is not a picture, or `read` fails.
    """
    _register_heif()
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("not a file")  # a named pipe would wait for ever
        with _warnings_hidden():
            try:
                with Image.open(path, formats=formats) as file:
                    if file.format in _PROGRAMS:
                        raise UnidentifiedImageError
                    return read(file)
            except Exception as error:
                if isinstance(error, Image.DecompressionBombError):
                    raise
                bare = open_without_extras(path)
                if bare is None:
                    raise
                with bare:
                    return read(bare)
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise LoLDUError(
            f"The picture {path} cannot be read; scale it down or remove it (it has more than "
            f"{limit} million pixels)."
        ) from error
    except Exception as error:  # a damaged file makes decoders fail in ways no list exhausts
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, UnidentifiedImageError):
            reason = "not a known picture format"
        raise LoLDUError(
            f"The picture {path} cannot be read; replace or remove it ({' '.join(reason.split())})."
        ) from error


@cache
def _register_heif() -> None:
    """Let Pillow read HEIC, which it cannot by itself; the decoder turns the pictures upright."""
    import pillow_heif  # 0.1 s

    heif: Any = pillow_heif  # typed in part only
    heif.register_heif_opener(thumbnails=False, depth_images=False, aux_images=False)


def _pixels(image: Image.Image) -> Image.Image:
    """Return a picture decoded and upright.

    Raises:
        OSError: If it is a TIFF whose values have no known black and white.
    """
    bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (8,))[0]
    if image.format == "TIFF" and (bits not in _BITS or image.mode in _UNSCALED):
        raise OSError(f"a TIFF of {image.mode} with {bits} bits; save it as RGB with 8 or 16 bits")
    depth = pixel_depth(image)
    image.load()
    scale_transparency(image, depth)
    return upright(image)


@contextmanager
def _warnings_hidden() -> Generator[None]:
    """Hide Pillow's warnings, such as of damaged EXIF, while any thread reads a picture.

    The filters of `warnings` belong to the whole process. If each thread saved and restored them,
    they could stay changed for good.
    """
    global _readers
    with _lock:
        if _readers == 0:
            _filters.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
        _readers += 1
    try:
        yield
    finally:
        with _lock:
            _readers -= 1
            if _readers == 0:
                _filters.close()


def _as_8_bits(image: Image.Image) -> Image.Image:
    """Return a 16-bit gray picture in 8 bits; its transparent value becomes an alpha channel."""
    deep, clear = np.asarray(image), image.info.get("transparency")
    gray = (deep.astype(np.float32) / 257).round().clip(0, 255).astype(np.uint8)
    shallow = Image.fromarray(gray)
    if isinstance(clear, int):
        shallow.putalpha(Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)))
    return shallow


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
