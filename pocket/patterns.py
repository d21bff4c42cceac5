"""Counts the dots and the stripes of a thing in a picture, by its colors alone."""

import random
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from pocket.render import render
from pocket.world import COLORS, Scene

_TRUE_RENDERS = 9
_SMALLEST_DOT_PX = 6


def count(picture: Image.Image, scene: Scene) -> int:
    """Return the number of dots or of stripes that a picture of a patterned scene shows."""
    accent, body = _painted(np.asarray(picture.convert("RGB")), scene)
    return _dots(accent) if scene["pattern"] == "dotted" else _stripes(accent, body)


def true_counts(scene: Scene) -> tuple[int, int]:
    """Return the least and the largest number of dots or of stripes in true renders of a scene."""
    counts = [count(render(scene, random.Random(i)), scene) for i in range(_TRUE_RENDERS)]
    return min(counts), max(counts)


def counted_right(pictures: Sequence[Image.Image], scenes: Sequence[Scene]) -> dict[str, float]:
    """Return the share of dotted and of striped pictures with as many dots or stripes as renders.

    The number is not a part of a scene: it depends on where the pattern begins.
    """
    right: dict[str, list[bool]] = {}
    for picture, scene in zip(pictures, scenes, strict=True):
        if (pattern := scene.get("pattern", "plain")) != "plain":
            least, most = true_counts(scene)
            right.setdefault(pattern, []).append(least <= count(picture, scene) <= most)
    return {pattern: sum(hits) / len(hits) for pattern, hits in sorted(right.items())}


def _painted(
    pixels: UInt8[np.ndarray, "h w 3"], scene: Scene
) -> tuple[Bool[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
    """Return where the thing has its accent and where its main color.

    Every pixel goes to the nearest color of the scene. The thing is what lies between pixels of its
    main color: in their column, and for dots also in their row. So an accent in the color of the
    background ends at the outline.
    """
    main, accent = np.array(COLORS[scene["color"]]), np.array(COLORS[scene["accent"]])
    others = [v for k, v in scene.items() if k.endswith("_color")]
    rest = [COLORS[c] for c in others if c not in (scene["color"], scene["accent"])]
    palette = np.array([main, accent, *rest, COLORS["white"], COLORS["black"]], dtype=float)
    distances = np.linalg.norm(pixels[:, :, None].astype(float) - palette, axis=-1)
    nearest = distances.argmin(-1)
    body = (nearest == 0) & (distances[..., 0] < 90)
    thing = _between(body.T).T
    if scene["pattern"] == "dotted":
        thing &= _between(body)
    return (nearest == 1) & thing, body


def _between(mask: Bool[np.ndarray, "h w"]) -> Bool[np.ndarray, "h w"]:
    """Return the pixels with a pixel of the mask on their left and on their right."""
    before = np.logical_or.accumulate(mask, axis=1)
    return before & np.logical_or.accumulate(mask[:, ::-1], axis=1)[:, ::-1]


def _dots(accent: Bool[np.ndarray, "h w"]) -> int:
    """Count round spots: connected, as high as wide, and not far smaller than the largest one."""
    from scipy import ndimage

    labels, found = ndimage.label(accent)  # pyright: ignore[reportGeneralTypeIssues]
    spots = [spot for spot in ndimage.find_objects(labels, found) if spot]
    round_areas = []
    for number, (rows, columns) in enumerate(spots, 1):
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        area = int((labels[rows, columns] == number).sum())
        compact = area >= 0.55 * high * wide and max(high, wide) <= 1.8 * min(high, wide)
        if area >= _SMALLEST_DOT_PX and compact:
            round_areas.append(area)
    return sum(area >= 0.4 * max(round_areas) for area in round_areas)


def _stripes(accent: Bool[np.ndarray, "h w"], body: Bool[np.ndarray, "h w"]) -> int:
    """Count the bands: neighboring rows in which the accent covers most of the paint."""
    covered = accent.sum(1) > 3 * body.sum(1)
    return int((np.diff(covered.astype(int), prepend=0) == 1).sum())
