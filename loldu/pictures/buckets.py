"""Shapes of training pictures: the aspect ratio of a picture is kept, and so is the area of all."""

import math

_LONGEST = 3
"""A side is at most this many times the resolution."""


def bucket_of(size: tuple[int, int], resolution: int, multiple: int) -> tuple[int, int]:
    """Return width and height of the bucket whose aspect ratio is nearest to a picture's.

    Both are multiples of `multiple`, and the area is at most the square of the resolution.

    Args:
        size: Width and height of the picture.
        resolution: Side of a square of the wanted area, at least `multiple`.
        multiple: What the network can take.
    """
    ratio = math.log(size[0] / size[1])
    widths = range(multiple, _LONGEST * resolution + 1, multiple)
    shapes = [(width, resolution**2 // width // multiple * multiple) for width in widths]
    shapes += [(height, width) for width, height in shapes]
    fitting = [shape for shape in shapes if 0 < min(shape) <= max(shape) <= _LONGEST * resolution]
    return min(fitting, key=lambda shape: (abs(math.log(shape[0] / shape[1]) - ratio), -shape[0]))
