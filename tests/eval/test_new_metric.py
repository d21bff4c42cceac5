"""A new metric is one registered class: every table, page, picture and curve shows it."""

import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

from eval.__main__ import run
from eval.encoders.encoder import Encoder
from eval.encoders.load import ENCODERS
from eval.encoders.preprocess import Preprocess
from eval.metrics import METRICS, Metric, Sample, register
from eval.protocols.live import LiveScorer, Pictures
from eval.report.before_after import BeforeAfter
from eval.report.figures import draw_curves
from eval.report.picture_content import score_bars
from eval.report.tables import before_after_rows
from eval.result import Result
from loldu import Concept
from tests.eval.noise import save_noise
from trainer.training import scores as training
from webui.engine.job import Job
from webui.engine.progress import Progress
from webui.library.about import describe
from webui.library.scoring import report_of
from webui.watching.charts import charts, table_of_step


class Pixels(Encoder):
    """Encode a picture as its own 4 x 4 pixels."""

    library = "pillow"

    def __init__(self) -> None:
        self.name, self.model = "pixels", torch.nn.Identity()
        self.preprocess = Preprocess(4, None)
        self.to("cpu")

    def _image_rows(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.flatten(1)


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Register a metric with an encoder of its own, for one test."""
    monkeypatch.setitem(ENCODERS, "pixels", lambda models, device: Pixels())

    @register
    class Toy(Metric):
        name = "toy"
        title = "Toy distance"
        aspect = "Has the colors of the concept"
        meaning = "distance to real pictures by pixels"
        higher_is_better = False
        against = "real"
        encoders = ("pixels",)

        def scores(self, sample: Sample) -> torch.Tensor:
            assert sample.real is not None
            return torch.cdist(sample.generated["pixels"], sample.real["pixels"]).double().mean(1)

    yield "toy"
    del METRICS["toy"]


@pytest.fixture
def results(
    toy: str, scoring: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> list[Path]:
    """Write two result files with pages; `capsys` still holds the output."""
    save_noise(tmp_path / "real", ["0.png", "1.png"], seed=9)
    files = []
    for seed in range(2):
        save_noise(tmp_path / str(seed), ["0.png", "1.png", "2.png"], seed=seed)
        files.append(tmp_path / f"{seed}.json")
        folders = ("--generated", str(tmp_path / str(seed)), "--real", str(tmp_path / "real"))
        out = ("--json", str(files[-1]), "--html", str(tmp_path / f"{seed}.html"))
        options = ("--prompt", "a toy", "--bootstrap_samples", "5")
        assert run(["images", *folders, *out, *options, *scoring]) == 0
    return files


def test_results_tables_pages_and_comparisons_have_a_new_metric(
    results: list[Path], tmp_path: Path, scoring: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(results[0].read_text())
    expected = [
        torch.cdist(*(torch.stack([*map(row, group)]) for group in groups)).mean().item()
        for groups in [([path], sorted((tmp_path / "real").iterdir())) for path in drawn(tmp_path)]
    ]
    pictures = content["subjects"]["0"]["pictures"]
    assert [one["toy"] for one in pictures] == pytest.approx(expected, abs=1e-5)
    assert content["scores"]["toy"]["mean"] == pytest.approx(sum(expected) / 3, abs=1e-5)
    assert content["extractors"]["pixels"]["name"] == "pixels"
    assert "Toy distance" in capsys.readouterr().out
    page = (tmp_path / "0.html").read_text()
    assert f"Toy distance {expected[0]:.3f}" in page
    assert "distance to real pictures by pixels; lower is better" in page
    out, plot = tmp_path / "compared.json", tmp_path / "plot.svg"
    more = ("--json", str(out), "--plot", str(plot), "--bootstrap_samples", "5")
    assert run(["compare", *map(str, results), *more]) == 0
    assert "toy" in json.loads(out.read_text())["differences"]["1"]
    assert "Toy distance" in plot.read_text()
    assert "Toy distance" in capsys.readouterr().out
    assert run(["calibrate", "--real", str(tmp_path / "real"), *scoring]) == 0
    assert "Toy distance" in capsys.readouterr().out


def drawn(folder: Path) -> list[Path]:
    return sorted((folder / "0").iterdir())


def row(path: Path) -> torch.Tensor:
    pixels = Preprocess(4, None)(Image.open(path)).flatten()
    return pixels / pixels.norm()


def test_the_report_and_the_studio_have_a_new_metric(results: list[Path], tmp_path: Path) -> None:
    before, after = (Result.from_json(json.loads(path.read_text())) for path in results)
    others = {"base": 0.1, "adapted": 0.2, "drift": 0.3}
    report = BeforeAfter("sks toy", before, after, others, {"toy": 0.5}, {})
    (bar,) = (bar for bar in score_bars(report) if "Toy distance" in bar.name)
    assert bar.adapted == after.estimates["toy"].mean
    assert (bar.name, bar.real) == ("Has the colors of the concept: Toy distance", 0.5)
    (tmp_path / "report.json").write_text(json.dumps(report.as_json()))
    job = Mock(spec=Job)
    job.folder = tmp_path
    (line,) = (line for line in before_after_rows(report_of(job)) if line[0] == "Toy distance")
    assert line[2] == f"{after.estimates['toy'].mean:.3f}"


def test_the_library_and_the_charts_of_the_studio_have_a_new_metric(toy: str) -> None:
    concept = Mock(spec=Concept, metadata={"scores": {"toy": 0.25}}, base="b", layers=[])
    assert describe(concept, size=1).scores == {"Toy distance": 0.25}
    measured = Progress(0, 60, (), {10: {"toy": 0.25}}, None, None, None, (), {}, {}, None, "")
    (chart,) = (chart for chart in charts(measured).values() if chart.title == "Toy distance")
    assert chart.curves == (("Toy distance", ((10, 0.25),)),)
    assert "Toy distance" in table_of_step(measured.scores, 10)


def test_training_measures_and_draws_a_new_metric(
    toy: str, clip_folder: Path, dino_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (Image.new("RGB", (32, 32), color) for color in ("red", "blue"))
    live = LiveScorer(str(clip_folder), str(dino_folder), "cpu")
    scores = live.score(Pictures([one], [one, other], ["a", "b"], [other], [one]))
    assert list(scores) == ["dino", "clip_i", "clip_t", "drift", "toy"]
    assert scores["toy"] > 0
    shown = []

    def recorded(title: str, panels: list, *, columns: int) -> Image.Image:
        shown.extend(panels)
        return draw_curves(title, panels, columns=columns)

    monkeypatch.setattr(training, "draw_curves", recorded)
    training.curves([{"step": 0, **scores}], None)
    assert shown[-1].title == "Toy distance: distance to real pictures by pixels"


def test_a_metric_name_is_unique(toy: str) -> None:
    with pytest.raises(ValueError, match="a metric toy already"):
        register(type(METRICS[toy]))


def test_the_balance_is_likeness_and_obedience_less_damage() -> None:
    scores = {"dino": 0.7, "clip_i": 0.3, "clip_t": 0.25, "drift": 0.1, "diversity": 9.0}
    assert training.balance(scores) == (0.7 + 0.3) / 2 + 0.25 - 0.1
