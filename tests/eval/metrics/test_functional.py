"""The scores against plain loops, torch's own cosine similarity and torchmetrics."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPModel, CLIPProcessor

from eval.encoders.load import load_clip
from eval.metrics import functional as metrics
from eval.metrics.bootstrap import mean_of
from eval.metrics.functional import (
    clip_t,
    diversities,
    drift,
    image_similarities,
    image_similarity,
    nearest,
    text_similarities,
)

REPOSITORY = Path(__file__).parents[3]


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
def test_similarity_of_a_set_with_itself_excludes_identical_pairs(n: int, seed: int) -> None:
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


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "CHUNK", 3)


@pytest.mark.usefixtures("small_chunks")
def test_chunks_change_nothing() -> None:
    rng = np.random.default_rng(4)
    generated, real = rng.normal(size=(8, 6)), rng.normal(size=(7, 6))
    loop = [[cosine(g, r) for r in real] for g in generated]
    ours = image_similarities(torch.tensor(generated), torch.tensor(real))
    np.testing.assert_allclose(ours.numpy(), np.mean(loop, axis=1), atol=1e-12)
    own = image_similarities(torch.tensor(real), torch.tensor(real), exclude_self=True)
    alone = [np.mean([cosine(a, b) for b in np.delete(real, i, 0)]) for i, a in enumerate(real)]
    np.testing.assert_allclose(own.numpy(), alone, atol=1e-12)
    matched = image_similarities(torch.tensor(generated[:7]), torch.tensor(real), pairs="matched")
    np.testing.assert_allclose(matched.numpy(), np.diag(np.array(loop)), atol=1e-12)
    places, cosines = nearest(torch.tensor(generated), torch.tensor(real))
    assert places.tolist() == np.argmax(loop, axis=1).tolist()
    np.testing.assert_allclose(cosines.numpy(), np.max(loop, axis=1), atol=1e-12)


def test_means_of_many_fp32_cosines_are_exact() -> None:
    """Sums of 3,000 x 30 cosines lose digits in fp32 and keep them in fp64."""
    generator = torch.Generator().manual_seed(0)
    generated, real = (torch.randn(n, 384, generator=generator) + 3 for n in (3000, 30))
    unit = [torch.nn.functional.normalize(rows.double(), dim=1) for rows in (generated, real)]
    expected = (unit[0] @ unit[1].T).mean().item()
    assert image_similarity(generated, real) == pytest.approx(expected, abs=1e-12)


def test_clip_t_with_a_scale_is_clipscore() -> None:
    """torchmetrics cuts the mean at 0, CLIPScore's paper each pair: the same for pairs above it."""
    functional = pytest.importorskip("torchmetrics.functional")
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(5, 8, generator=generator)
    texts = torch.rand(5, 8, generator=generator)
    matrix = functional.pairwise_cosine_similarity(images.double(), texts.double())
    expected = (100 * matrix.diagonal()).mean().item()
    assert clip_t(images, texts, scale=100) == pytest.approx(expected, abs=1e-9)
    images[0] = -images[0]
    cosines = functional.pairwise_cosine_similarity(images.double(), texts.double()).diagonal()
    assert text_similarities(images, texts, scale=2.5).tolist() == pytest.approx(
        (2.5 * cosines.clamp(min=0)).tolist(), abs=1e-12
    )
    assert text_similarities(images, texts).tolist() == pytest.approx(cosines.tolist(), abs=1e-12)


class ProjectedClip(CLIPModel):
    """Return the features alone for torchmetrics; transformers 5 returns them in an object."""

    def get_image_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return super().get_image_features(pixel_values).pooler_output

    def get_text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return super().get_text_features(ids, mask).pooler_output


@pytest.mark.filterwarnings("ignore:`max_length` is ignored")
def test_clip_t_of_real_pictures_is_torchmetrics_clipscore() -> None:
    """Write files, and score them with the preprocessing and the model of torchmetrics."""
    multimodal = pytest.importorskip("torchmetrics.functional.multimodal")
    folder = str(REPOSITORY / "pocket" / "encoders" / "clip")
    paths = sorted((REPOSITORY / "datasets" / "concepts" / "striped_cat").glob("*.png"))
    images = [Image.open(path).convert("RGB") for path in paths]
    # Of a picture that is unlike its text, torchmetrics cuts the mean at 0, and we the cosine.
    texts = ["a photo of a toy", "a toy on grass", "a toy", "a toy on sand", "a striped toy"]
    expected = multimodal.clip_score(
        [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in images],
        texts,
        lambda: (
            ProjectedClip.from_pretrained(folder, dtype=torch.float32),
            CLIPProcessor.from_pretrained(folder),
        ),
    )
    clip = load_clip(folder)
    ours = clip_t(clip.encode_images(images), clip.encode_texts(texts), scale=100)
    assert ours == pytest.approx(expected.item(), abs=1e-3)  # of 100: 1e-5 of the cosine
    assert expected.item() > 10


def test_image_similarity_is_torchmetrics_pairwise_mean() -> None:
    functional = pytest.importorskip("torchmetrics.functional")
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(6, 16, generator=generator), torch.randn(4, 16, generator=generator)
    expected = functional.pairwise_cosine_similarity(a.double(), b.double()).mean().item()
    assert image_similarity(a, b) == pytest.approx(expected, abs=1e-12)
    own = functional.pairwise_cosine_similarity(a.double())  # leaves the diagonal at 0
    assert image_similarity(a, a, exclude_self=True) == pytest.approx(own.sum().item() / 30)


def test_drift_is_one_minus_the_similarity_of_pairs() -> None:
    a = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    assert drift(a, a) == pytest.approx(0)
    assert drift(a, a.flip(0)) == pytest.approx(1)
    assert drift(a, torch.tensor([[3.0, 0.0], [1.0, 1.0]])) == pytest.approx((1 - 0.5**0.5) / 2)


def test_diversity_compares_pictures_of_one_prompt() -> None:
    rng = np.random.default_rng(5)
    features, prompts = rng.normal(size=(5, 4)), ["a", "b", "a", "b", "a"]
    expected = [
        1 - np.mean([cosine(features[i], features[j]) for j in others])
        for i, others in enumerate([(2, 4), (3,), (0, 4), (1,), (0, 2)])
    ]
    got = diversities(torch.tensor(features), prompts)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-12)
    with pytest.raises(ValueError, match="two pictures of every prompt"):
        diversities(torch.tensor(features), ["a", "b", "a", "b", "c"])


def test_subjects_have_equal_weight_unless_pictures_are_pooled() -> None:
    scores = [np.array([1.0, 1.0, 1.0]), np.array([0.0])]
    assert mean_of(scores, "macro") == 0.5
    assert mean_of(scores, "micro") == 0.75


@pytest.mark.parametrize("scores", [[], [np.array([1.0]), np.array([])]])
def test_a_subject_without_a_score_is_refused(scores: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="subject"):
        mean_of(scores, "macro")


def test_no_pictures_is_refused() -> None:
    none, one = torch.zeros(0, 4), torch.ones(1, 4)
    with pytest.raises(ValueError, match="no pair"):
        image_similarity(none, one)
    with pytest.raises(ValueError, match="no pair"):
        image_similarity(one, one, exclude_self=True)
    for how in ({"exclude_self": True}, {"pairs": "matched"}):
        with pytest.raises(ValueError, match="one size"):
            image_similarity(one, torch.ones(2, 4), **how)
    with pytest.raises(ValueError, match="no pair"):
        nearest(one, none)
    with pytest.raises(ValueError, match="no picture"):
        drift(none, none)
    with pytest.raises(ValueError, match="no picture"):
        clip_t(none, none)
