"""The tables and the picture of the measurements on the shipped concepts."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.pocket_concepts.__main__ import Options, main
from experiments.pocket_concepts.judge import SEEDS_EACH, TUNING, Drawn, pictures_of
from experiments.pocket_concepts.report import by_concept, by_method, comparison
from pocket.world import is_held_out

SCORES = dict.fromkeys(("dino", "clip_i", "clip_t", "concept", "background", "others", "leak"), 0.2)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    def write(file: str, record: dict[str, object]) -> None:
        path = tmp_path / "results" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record))

    real = {"dino": 0.6, "clip_i": 1.0}
    write("base/striped_cat.json", {"concept": "striped_cat", "scores": SCORES, "real": real})
    for seed, dino in ((0, 0.3), (1, 0.5)):
        scores = SCORES | {"dino": dino, "clip_i": 0.6}
        run = {"concept": "striped_cat", "flags": [], "parameters": 7224, "scores": scores}
        write(f"loldu/striped_cat-{seed}.json", run)
    return tmp_path / "results"


def test_the_gap_closed_is_the_share_of_the_way_from_base_to_real(results: Path) -> None:
    row = by_method(results).splitlines()[-1].split(" | ")
    assert row[:5] == ["| loldu", "7,224", "2", "0.50", "0.50"]
    assert row[5] == "0.400 ± 0.141"
    assert by_concept(results).splitlines()[-1] == "| striped_cat | 0.50 / 0.50 |"


def test_results_of_other_flags_are_not_taken_for_these(results: Path) -> None:
    options = Options(
        flags="--learning_rate 1", concepts=("striped_cat",), seeds=(0,), results=results
    )
    with pytest.raises(SystemExit, match=r"was made with .*; choose another --name"):
        main(options)


def test_what_was_drawn_can_be_judged_and_shown_again(results: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def noise(count: int) -> list[Image.Image]:
        return [
            Image.fromarray(a) for a in rng.integers(0, 255, (count, 64, 64, 3), dtype=np.uint8)
        ]

    drawn = Drawn(noise(6 * SEEDS_EACH), noise(2), noise(1))
    for file in ("base/striped_cat.npz", "loldu/striped_cat-0/drawn.npz"):
        drawn.save(tmp_path / file)
    again = Drawn.load(tmp_path / "base" / "striped_cat.npz")
    assert [p.tobytes() for p in again.others] == [p.tobytes() for p in drawn.others]
    assert comparison(results, tmp_path).width == (2 + 3 + 3) * 128


def test_tuning_uses_no_shipped_concept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, look in TUNING.items():
        assert not is_held_out(look)
        assert len(list(pictures_of(name).glob("*.png"))) == 5
