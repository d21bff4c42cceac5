"""Retrieval against scikit-learn and plain loops; what a copy and a shuffled gallery score."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from eval.metrics import functional
from eval.metrics.retrieval import retrieval


def sample(seed: int, n: int, m: int, d: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Return few small numbers, so that some cosines are equal."""
    rng = np.random.default_rng(seed)
    queries, gallery = (rng.integers(-2, 3, (count, d)).astype(float) for count in (n, m))
    return queries + 0.5, gallery + 0.5


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return cosines as torch rounds them, for ties must be ties in both."""
    return (functional.unit(torch.tensor(a)) @ functional.unit(torch.tensor(b)).T).numpy()


@settings(deadline=None)
@given(n=st.integers(1, 4), m=st.integers(2, 9), k=st.integers(1, 8), seed=st.integers(0, 999))
def test_average_precision_is_that_of_scikit_learn(n: int, m: int, k: int, seed: int) -> None:
    queries, gallery = sample(seed, n, m)
    own = np.random.default_rng(seed).permutation(np.arange(m) < min(k, m - 1))
    precision, hit = retrieval(torch.tensor(queries), torch.tensor(gallery), torch.tensor(own))
    for i, row in enumerate(cosines(queries, gallery)):
        assert precision[i].item() == pytest.approx(average_precision_score(own, row), abs=1e-12)
        best = own[row == row.max()]
        assert hit[i].item() == pytest.approx(best.mean())


@settings(deadline=None)
@given(m=st.integers(3, 8), k=st.integers(2, 7), seed=st.integers(0, 999))
def test_a_real_picture_is_left_out_of_its_own_gallery(m: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    gallery = rng.normal(size=(m, 4))
    own = rng.permutation(np.arange(m) < min(k, m - 1))
    got = retrieval(
        torch.tensor(gallery[own]), torch.tensor(gallery), torch.tensor(own), exclude_self=True
    )
    for i, place in enumerate(np.flatnonzero(own)):
        left, labels = np.delete(gallery, place, 0), np.delete(own, place)
        row = cosines(gallery[place : place + 1], left)[0]
        assert got[0][i].item() == pytest.approx(average_precision_score(labels, row), abs=1e-12)
        assert got[1][i].item() == labels[row.argmax()]


@settings(deadline=None, max_examples=30)
@given(m=st.integers(2, 6), k=st.integers(1, 5), seed=st.integers(0, 99))
def test_a_gallery_with_shuffled_labels_scores_at_chance(m: int, k: int, seed: int) -> None:
    """Try every way to label it: top-1 finds k of m, and mAP is that of a random order."""
    k = min(k, m - 1)
    rng = np.random.default_rng(seed)
    query, gallery = torch.tensor(rng.normal(size=(1, 5))), torch.tensor(rng.normal(size=(m, 5)))
    scores = []
    for chosen in combinations(range(m), k):
        own = torch.zeros(m, dtype=torch.bool)
        own[list(chosen)] = True
        scores.append([value.item() for value in retrieval(query, gallery, own)])
    precision, hit = np.mean(scores, axis=0)
    assert hit == pytest.approx(k / m)
    # Rank r is own with chance k/m, and then (r - 1)(k - 1)/(m - 1) of those before it are.
    chance = np.mean([(1 + (r - 1) * (k - 1) / (m - 1)) / r for r in range(1, m + 1)])
    assert precision == pytest.approx(chance)


def test_copies_of_one_picture_find_it_and_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    gallery = torch.tensor(rng.normal(size=(12, 5)))
    own = torch.arange(12) % 4 == 0
    queries = torch.cat([gallery[own], torch.tensor(rng.normal(size=(6, 5)))])
    whole = retrieval(queries, gallery, own)
    assert whole[1][:3].tolist() == [1, 1, 1]
    alone = torch.zeros(12, dtype=torch.bool)
    alone[4] = True
    assert [value.item() for value in retrieval(gallery[4:5], gallery, alone)] == [1, 1]
    real = retrieval(gallery[own], gallery, own, exclude_self=True)
    monkeypatch.setattr(functional, "CHUNK", 2)
    for ours, theirs in (
        (whole, retrieval(queries, gallery, own)),
        (real, retrieval(gallery[own], gallery, own, exclude_self=True)),
    ):
        torch.testing.assert_close(ours, theirs)


def test_nothing_to_find_or_to_tell_apart_is_refused() -> None:
    rows = torch.eye(3)
    for own, exclude in (([0, 0, 0], False), ([1, 1, 1], False), ([1, 0, 0], True)):
        with pytest.raises(ValueError, match="own picture to find"):
            retrieval(rows[:1], rows, torch.tensor(own).bool(), exclude_self=exclude)
    with pytest.raises(ValueError, match="1 queries are not the 2 own"):
        retrieval(rows[:1], rows, torch.tensor([1, 1, 0]).bool(), exclude_self=True)
