"""The scores against plain loops and torch's own cosine similarity."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import clip_t, image_similarity, mean_over_subjects


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a @ b) / math.sqrt((a @ a) * (b @ b)))


@given(n=st.integers(1, 5), m=st.integers(1, 5), d=st.integers(1, 7), seed=st.integers(0, 999))
def test_image_similarity_is_the_mean_over_all_pairs(n: int, m: int, d: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    generated, real = rng.normal(size=(n, d)), rng.normal(size=(m, d))
    expected = np.mean([cosine(g, r) for g in generated for r in real])
    got = image_similarity(torch.tensor(generated), torch.tensor(real))
    assert got == pytest.approx(expected, abs=1e-12)


@given(n=st.integers(2, 6), seed=st.integers(0, 999))
def test_a_set_against_itself_leaves_out_the_pairs_with_itself(n: int, seed: int) -> None:
    real = np.random.default_rng(seed).normal(size=(n, 4))
    expected = np.mean([cosine(real[i], real[j]) for i in range(n) for j in range(n) if i != j])
    features = torch.tensor(real)
    assert image_similarity(features, features, exclude_self=True) == pytest.approx(
        expected, abs=1e-12
    )
    with_self = ((n - 1) * expected + 1) / n
    assert image_similarity(features, features) == pytest.approx(with_self, abs=1e-12)


@given(n=st.integers(1, 6), seed=st.integers(0, 999))
def test_clip_t_pairs_each_picture_with_its_own_prompt(n: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(n, 5, generator=generator)
    texts = torch.randn(n, 5, generator=generator)
    expected = torch.cosine_similarity(images.double(), texts.double()).mean().item()
    assert clip_t(images, texts) == pytest.approx(expected, abs=1e-7)


def test_scores_do_not_depend_on_the_length_of_features() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(3, 8, generator=generator), torch.randn(3, 8, generator=generator)
    assert image_similarity(a * 100, b) == pytest.approx(image_similarity(a, b), abs=1e-7)
    assert clip_t(a, b * 0.01) == pytest.approx(clip_t(a, b), abs=1e-7)


def test_every_subject_counts_the_same() -> None:
    assert mean_over_subjects([[1.0, 1.0, 1.0], [0.0]]) == 0.5


@pytest.mark.parametrize("scores", [[], [[1.0], []]])
def test_a_subject_without_a_score_is_refused(scores: list[list[float]]) -> None:
    with pytest.raises(ValueError, match="subject"):
        mean_over_subjects(scores)


def test_no_pictures_is_refused() -> None:
    none, one = torch.zeros(0, 4), torch.ones(1, 4)
    with pytest.raises(ValueError, match="no pair"):
        image_similarity(none, one)
    with pytest.raises(ValueError, match="no pair"):
        image_similarity(one, one, exclude_self=True)
    with pytest.raises(ValueError, match="one size"):
        image_similarity(one, torch.ones(2, 4), exclude_self=True)
    with pytest.raises(ValueError, match="no picture"):
        clip_t(none, none)
