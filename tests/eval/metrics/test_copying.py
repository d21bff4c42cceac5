"""Copies of training pictures: aligned pixels against a plain loop, and shares of near-copies."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eval.encoders.encoder import Thumbnail
from eval.metrics import METRICS, Sample, functional
from eval.metrics.copying import SHIFT_PX, SIDE_PX, aligned_likeness

MOVES = range(-SHIFT_PX, SHIFT_PX + 1)


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((count, 3, SIDE_PX, SIDE_PX))


def rows(pictures: np.ndarray) -> torch.Tensor:
    return torch.tensor(pictures.reshape(len(pictures), -1), dtype=torch.float32)


def by_hand(a: np.ndarray, b: np.ndarray) -> float:
    """Move one picture over the other, also mirrored, and correlate where they overlap."""
    found = []
    for picture in (b, b[:, :, ::-1]):
        for down in MOVES:
            for across in MOVES:
                places = [
                    (y, x)
                    for y in range(SIDE_PX)
                    for x in range(SIDE_PX)
                    if 0 <= y + down < SIDE_PX and 0 <= x + across < SIDE_PX
                ]
                y, x = np.array(places).T
                pair = a[:, y + down, x + across].ravel(), picture[:, y, x].ravel()
                found.append(np.corrcoef(*pair)[0, 1])
    return max(found)


def test_aligned_likeness_is_the_best_correlation(monkeypatch: pytest.MonkeyPatch) -> None:
    generated, real = noise(3), noise(2, seed=1)
    generated[1] = np.roll(real[0], (2, -1), axis=(1, 2)) + generated[1] / 4
    table = [[by_hand(g, r) for r in real] for g in generated]
    expected = np.max(table, axis=1)
    assert expected[1] > 0.9 > expected[0]
    got = aligned_likeness(rows(generated), rows(real))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
    monkeypatch.setattr(functional, "CHUNK", 1)
    np.testing.assert_allclose(
        aligned_likeness(rows(generated), rows(real)).numpy(), expected, atol=1e-5
    )
    own = aligned_likeness(rows(real), rows(real), exclude_self=True)
    np.testing.assert_allclose(own.numpy(), [by_hand(*real)] * 2, atol=1e-5)


@settings(deadline=None, max_examples=15)
@given(
    down=st.sampled_from(MOVES),
    across=st.sampled_from(MOVES),
    mirrored=st.booleans(),
    gain=st.floats(0.2, 3),
    offset=st.floats(-1, 1),
    seed=st.integers(0, 99),
)
def test_a_copy_scores_1_wherever_it_moved_and_however_bright_it_is(
    down: int, across: int, mirrored: bool, gain: float, offset: float, seed: int
) -> None:
    real = noise(2, seed)
    copy = gain * np.roll(real[1], (down, across), axis=(1, 2)) + offset
    copy = copy[:, :, ::-1] if mirrored else copy
    assert aligned_likeness(rows(copy[None].copy()), rows(real)).item() == pytest.approx(
        1, abs=1e-4
    )
    assert aligned_likeness(rows(noise(1, seed + 100)), rows(real)).item() < 0.5


def test_no_pictures_are_refused() -> None:
    one = rows(noise(1))
    for generated, real, exclude in (
        (one[:0], one, False),
        (one, one[:0], False),
        (one, one, True),
    ):
        with pytest.raises(ValueError, match="no pair"):
            aligned_likeness(generated, real, exclude_self=exclude)


def photo(seed: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((96, 80))


def test_a_thumbnail_is_the_picture_small_and_square() -> None:
    image = photo(0)
    small = image.resize((28, 24), Image.Resampling.BICUBIC).crop((2, 0, 26, 24))
    expected = np.asarray(small, dtype=np.float64).transpose(2, 0, 1).ravel()
    got = Thumbnail(24).encode_images([image])[0].numpy()
    np.testing.assert_allclose(got, expected / np.linalg.norm(expected), atol=1e-6)


def test_near_copies_are_far_nearer_than_two_training_pictures_are() -> None:
    """Three training pictures, two of them alike; the copies are by pixels, then by patches.

    The last picture is a little nearer to one of them than those two are, and no copy.
    """
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(5, 32, generator=generator)
    pixels = rows(noise(5))
    training = {"dino_patches": patches[:3].clone(), "thumbnail": pixels[:3].clone()}
    training["dino_patches"][1] = training["dino_patches"][0] + 0.3 * patches[3]
    training["thumbnail"][1] = training["thumbnail"][0] + pixels[3]
    generated = {"dino_patches": patches[3:].repeat(2, 1), "thumbnail": pixels[3:].repeat(2, 1)}
    generated["thumbnail"][1] = training["thumbnail"][2]
    generated["dino_patches"][2] = training["dino_patches"][2] + 0.01 * patches[3]
    generated["dino_patches"][3] = training["dino_patches"][2] + 0.25 * patches[3]
    sample = Sample(generated=generated, training=training)
    assert METRICS["near_copies"].scores(sample).tolist() == [0, 1, 1, 0]
    of_one = {name: features[:1] for name, features in training.items()}
    assert not METRICS["near_copies"].applies(Sample(generated=generated, training=of_one))
