"""Numbers about a picture that tell whether it is fit to be learned from."""

import numpy as np
from jaxtyping import Float
from PIL import Image

BLURRY = 80.0
"""Sharpness below which a picture looks blurred at full size.

Photographs in focus have 250 and more, the same with a Gaussian blur of 2 pixels 50 or less.
"""
NEARLY_THE_SAME = 0.96
"""Likeness from which two pictures are the same but for encoding, size, brightness or a small crop.

Such copies have 0.97 and more, different photographs up to 0.93, pictures of one subject in
different places up to 0.88.
"""
_TILES = 8
_THUMBNAIL_PX, _WINDOW_PX = 64, range(56, 65, 2)
_SIGNATURE_PX = 16


def sharpness(image: Image.Image) -> float:
    """The variance of the Laplacian in the sharpest tenth of a picture.

    A tenth, since a subject in focus before a blurred background is what one wants.

    Source: Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, 2000 (the variance).
    """
    gray = np.asarray(image.convert("L"), dtype=np.float64)
    around = gray[:-2, 1:-1] + gray[2:, 1:-1] + gray[1:-1, :-2] + gray[1:-1, 2:]
    squares = (around - 4 * gray[1:-1, 1:-1]) ** 2  # a Laplacian's mean is 0
    tiles = min(_TILES, *squares.shape)
    height, width = (side // tiles for side in squares.shape)
    cut = squares[: height * tiles, : width * tiles].reshape(tiles, height, tiles, width)
    return float(np.quantile(cut.mean(axis=(1, 3)), 0.9))


def signature(image: Image.Image) -> Float[np.ndarray, "crops values"]:
    """A thumbnail of a picture, last, and of its crops, each without its mean and of length 1.

    The usual perceptual hashes do not do here: a crop by a twentieth changes as many of their bits
    as there are between two pictures of one subject.
    """
    small = image.resize((_THUMBNAIL_PX, _THUMBNAIL_PX), Image.Resampling.BOX)
    crops = [
        small.resize(
            (_SIGNATURE_PX, _SIGNATURE_PX),
            Image.Resampling.BILINEAR,
            box=(x, y, x + width, y + height),
        )
        for width in _WINDOW_PX
        for height in _WINDOW_PX
        for x in range(0, _THUMBNAIL_PX - width + 1, 2)
        for y in range(0, _THUMBNAIL_PX - height + 1, 2)
    ]
    colours = np.stack([np.asarray(crop, dtype=np.float32) for crop in crops])
    values = (colours - colours.mean(axis=(1, 2), keepdims=True)).reshape(len(crops), -1)
    return values / np.linalg.norm(values, axis=1, keepdims=True).clip(min=1e-6)


def likeness(
    first: Float[np.ndarray, "crops values"], second: Float[np.ndarray, "crops values"]
) -> float:
    """The best correlation of one picture with a crop of the other, from their signatures."""
    return float(max((first @ second[-1]).max(), (second @ first[-1]).max()))
