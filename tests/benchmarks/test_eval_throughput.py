import json
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import eval_throughput
from eval.encoders.load import load_clip, load_dino


def test_the_loop_and_ours_give_the_same_scores(
    clip_folder: Path, dino_folder: Path, tmp_path: Path
) -> None:
    models = {"dino": load_dino(str(dino_folder)), "clip": load_clip(str(clip_folder))}
    generated = eval_throughput.render(tmp_path / "a", 5, 40, seed=0)
    real = eval_throughput.render(tmp_path / "b", 2, 40, seed=1)
    with Image.open(real[0]) as picture:
        assert picture.size == (40, 40)
    ours = eval_throughput.ours(models, generated, real)
    assert ours == pytest.approx(eval_throughput.plain_loop(models, generated, real), abs=1e-5)


@pytest.mark.slow
def test_the_record_has_every_way(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    output = tmp_path / "out.json"
    eval_throughput.main(
        ["--pictures", "3", "--side_px", "64", "--repetitions", "1", "--output", str(output)]
    )
    result = json.loads(output.read_text())
    assert set(result["ways"]) == set(eval_throughput.WAYS)
    assert result["greatest_difference_of_scores"] < 1e-5
    for record in result["ways"].values():
        assert record["pictures_per_second"]["median"] > 0
