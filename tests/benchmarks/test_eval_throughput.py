import json
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

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


class Inline:
    """A process pool that runs everything in this process."""

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, call: Callable[..., Any], *given: Any) -> Future[Any]:  # noqa: ANN401
        future: Future[Any] = Future()
        future.set_result(call(*given))
        return future


def test_the_record_has_every_way(
    clip_folder: Path, dino_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tiny networks in this process take the place of the true ones."""
    pytest.importorskip("open_clip")

    models = {"dino": load_dino(str(dino_folder)), "clip": load_clip(str(clip_folder))}
    monkeypatch.setattr(eval_throughput, "load", lambda seed, device: models)
    monkeypatch.setattr(eval_throughput, "ProcessPoolExecutor", Inline)
    check_the_record(tmp_path / "out.json")


@pytest.mark.slow
def test_the_true_networks_have_every_way(tmp_path: Path) -> None:
    pytest.importorskip("open_clip")
    check_the_record(tmp_path / "out.json")


def check_the_record(output: Path) -> None:
    eval_throughput.main(
        ["--pictures", "3", "--side_px", "64", "--repetitions", "1", "--output", str(output)]
    )
    result = json.loads(output.read_text())
    assert set(result["ways"]) == set(eval_throughput.WAYS)
    assert result["greatest_difference_of_scores"] < 1e-5
    for record in result["ways"].values():
        assert record["pictures_per_second"]["median"] > 0
