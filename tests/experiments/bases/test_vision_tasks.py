"""Image datasets: reproducible, no picture twice, every class in every split."""

import hashlib
import random
from collections import Counter

import pytest

from experiments.bases.tasks import vision
from experiments.bases.tasks.proportions import CarModel, Creature

SETS = [name for name in vision.GENERATORS if not name.endswith("-tuning")]


@pytest.mark.parametrize("name", SETS)
def test_splits_and_drawings_share_no_picture(name: str) -> None:
    draw, classes, _, _ = vision._SETS[name]
    seen: Counter[str] = Counter()
    for drawing in (0, 1):
        data = vision._drawn(name, draw, classes, 2 * len(classes), len(classes), drawing)
        assert data["train"].features["label"].names == list(classes)
        for split, each in (("train", 2), ("test", 1)):
            assert Counter(data[split]["label"][:]) == dict.fromkeys(range(len(classes)), each)
            seen.update(hashlib.sha256(p.tobytes()).hexdigest() for p in data[split]["image"])
            assert data[split][0]["image"].size == (64, 64)
    assert max(seen.values()) == 1
    assert len(seen) == 2 * 3 * len(classes)


@pytest.mark.parametrize("name", SETS)
def test_a_dataset_is_reproducible(name: str) -> None:
    draw, classes, _, _ = vision._SETS[name]
    first = vision._drawn(name, draw, classes, 6, 4, 0)
    vision._drawn.cache_clear()
    again = vision._drawn(name, draw, classes, 6, 4, 0)
    assert first["train"]["label"][:] == again["train"]["label"][:]
    pairs = zip(first["test"]["image"], again["test"]["image"], strict=True)
    assert all(one.tobytes() == other.tobytes() for one, other in pairs)


def test_individuals_differ_in_their_pictures() -> None:
    """Two individuals in one pose differ in their proportions only."""
    rng = random.Random(0)
    first, second = (Creature.at_random(rng).render(random.Random(5), 0) for _ in range(2))
    assert first.tobytes() != second.tobytes()
    assert first.getpixel((0, 0)) == second.getpixel((0, 0))
    cars = [CarModel.at_random(rng).render(random.Random(5), 0) for _ in range(2)]
    assert cars[0].tobytes() != cars[1].tobytes()
    assert cars[0].getpixel((0, 0)) == cars[1].getpixel((0, 0))
