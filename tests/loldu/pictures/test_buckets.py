"""Buckets keep aspect ratio and area."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from loldu.pictures.buckets import bucket_of
from loldu.pictures.crop import crops

SIDES = st.integers(50, 6000)


@given(SIDES, SIDES)
def test_a_bucket_has_the_shape_of_its_picture(width: int, height: int) -> None:
    across, down = bucket_of((width, height), 512, 64)
    assert across % 64 == down % 64 == 0
    assert across * down <= 512**2
    ratio, own = width / height, across / down
    if 1 / 2 <= ratio <= 2:
        assert across * down >= 0.85 * 512**2
        assert min(ratio / own, own / ratio) >= 0.87  # the share that a crop to the bucket keeps
    shapes = {
        (w, h)
        for w in range(64, 1537, 64)
        for h in range(64, 1537, 64)
        if 512**2 - 64 * max(w, h) < w * h <= 512**2
    }
    best = min(abs(math.log(w / h) - math.log(ratio)) for w, h in shapes)
    assert abs(math.log(own) - math.log(ratio)) <= best + 1e-9


def test_known_shapes() -> None:
    assert bucket_of((1000, 1000), 512, 64) == (512, 512)
    assert bucket_of((640, 640), 16, 4) == (16, 16)
    assert bucket_of((1500, 1000), 512, 64) == (640, 384)
    assert bucket_of((1000, 1500), 512, 64) == (384, 640)
    assert bucket_of((10, 9999), 512, 64) == (128, 1536)


@pytest.mark.parametrize("size", [(600, 400), (400, 600), (500, 500), (901, 507), (300, 533)])
def test_nothing_but_the_rounding_is_cut_off(size: tuple[int, int]) -> None:
    """Red rises from left to right and green from top to bottom: the corners tell what is left."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    image = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).round().astype(np.uint8))
    shape = bucket_of(size, 256, 32)
    rng = np.random.default_rng(0)
    (view,) = crops(image, shape, center_crop=True, random_flip=False, rng=rng)
    assert view.shape == (3, shape[1], shape[0])
    levels = (view + 1) / 2
    kept = torch.stack(
        [
            levels[0, :, -1].mean() - levels[0, :, 0].mean(),
            levels[1, -1].mean() - levels[1, 0].mean(),
        ]
    )
    ratio, own = size[0] / size[1], shape[0] / shape[1]
    expected = torch.tensor([min(1.0, own / ratio), min(1.0, ratio / own)])
    torch.testing.assert_close(kept, expected, rtol=0, atol=0.02)
    assert kept.min() > 0.87
