import json
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Self

import pytest
from PIL import Image

from benchmarks import eval_throughput
from eval.encoders.load import load_clip, load_dino
from loldu.errors import LoLDUError


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


BEFORE = """
from dataclasses import dataclass


@dataclass
class Options:
    pictures: int
    side_px: int
    seed: int
    device: str


def measure_way(way, options, generated, real):
    assert way == "ours" and generated[0].exists()
    counts = {"dino": len(generated), "clip_i": len(real)}
    return {"seconds": 2.0, "peak_mib": options.side_px, **counts}
"""


def git(folder: Path, *command: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    subprocess.run(["git", "-C", str(folder), *who, *command], check=True, capture_output=True)


def test_a_revision_is_measured_with_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout, before = tmp_path / "checkout", tmp_path / "before"
    before.mkdir()
    (checkout / "benchmarks").mkdir(parents=True)
    (checkout / "benchmarks" / "__init__.py").write_text("")
    module = checkout / "benchmarks" / "eval_throughput.py"
    module.write_text(BEFORE)
    git(tmp_path, "init", "-q", str(checkout))
    git(checkout, "add", ".")
    git(checkout, "commit", "-q", "-m", "before")
    git(checkout, "tag", "v1")
    module.write_text("raise SystemExit('today')")
    git(checkout, "commit", "-q", "-a", "-m", "today")
    monkeypatch.setattr(eval_throughput, "ROOT", checkout)
    pictures = eval_throughput.render(tmp_path / "a", 3, 16, seed=0)
    options = eval_throughput.Options(pictures=3, side_px=16, against="v1")
    eval_throughput.extract("v1", before)
    found = eval_throughput.measure_revision(before, options, pictures[:2], pictures[2:])
    assert found == (2.0, 16.0, 2.0, 1.0)
    eval_throughput.extract("HEAD", before)
    with pytest.raises(LoLDUError, match=r"of --against v1 failed \(today\)"):
        eval_throughput.measure_revision(before, options, pictures[:2], pictures[2:])
    with pytest.raises(LoLDUError, match="--against v2 is no revision of the checkout"):
        eval_throughput.extract("v2", before)


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
