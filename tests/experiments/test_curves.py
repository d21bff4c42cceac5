"""Tables, figure and judge of the learning curves."""

import random
from pathlib import Path

import pytest
from PIL import Image

from eval.protocols.live import Pictures
from eval.report.figures import Panel, draw_curves
from experiments import figures
from experiments.config import read_experiment
from experiments.data import entry
from experiments.kinds import table_of
from experiments.kinds.by_trainer import config_of
from experiments.kinds.concepts.judge import Judge
from experiments.kinds.curves.scorer import METRICS, CurveScorer
from experiments.kinds.curves.table import differences, runs_of
from experiments.results import Results
from pocket.render import render
from tests.experiments.results import write_result

EXPERIMENT = read_experiment("pocket_curves")


def write_curve(
    folder: Path, row: str, seed: int, data: str = "striped_cat", **last: float
) -> None:
    """Write a curve from .2 to .3 (seed 0) or .5 (seed 1) in every metric, or to `last`."""
    runs = EXPERIMENT.runs(EXPERIMENT.row(row), "pocket", [data])
    run = next(run for run in runs if run.seed == seed)
    levels = ((0, 0.2), (60, 0.3 + 0.2 * seed))
    points = [{"step": step, **dict.fromkeys(METRICS, level)} for step, level in levels]
    points[-1] |= last
    parameters = {"lora-r4": 59136, "loldu-r8": 504}[row]
    write_result(folder, run, 0.0, history=points, parameters=parameters)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for row in ("lora-r4", "loldu-r8"):
        for seed in (0, 1):
            write_curve(tmp_path, row, seed)
    return tmp_path


def rows_of(table: str) -> list[list[str]]:
    return [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]


def ends_of(results: Path) -> list[list[str]]:
    return rows_of(table_of(EXPERIMENT, "pocket", Results(results)).split("\n\n")[0])


def test_table_and_figure_show_the_end_of_every_curve(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = ends_of(results)
    assert rows[0][:5] == ["loldu-r8", "504", "2", "60", "0.400 ± 0.141"]
    assert rows[1][0] == "lora-r4"
    assert len(rows[0]) == 4 + len(METRICS)
    drawn: list[Panel] = []

    def recorded(
        title: str, panels: list[Panel], *, columns: int, size_px: tuple[int, int]
    ) -> Image.Image:
        drawn.extend(panels)
        return draw_curves(title, panels, columns=columns, size_px=size_px)

    monkeypatch.setattr(figures, "draw_curves", recorded)
    assert figures.draw_figures("pocket", Results(results), results / "figures")
    assert [curve.name for curve in drawn[0].curves] == ["loldu-r8", "lora-r4"]
    assert [curve.y[-1] for curve in drawn[0].curves] == pytest.approx([0.4, 0.4])


def test_differences_are_those_of_runs_of_one_concept_and_seed(results: Path) -> None:
    write_curve(results, "lora-r4", 1, dino=0.4)  # 0.1 less than loldu-r8 of that seed
    runs = runs_of(EXPERIMENT, "pocket", Results(results))
    rows = rows_of(differences(runs, "loldu-r8"))
    assert len(rows) == 1
    assert rows[0][:3] == ["lora-r4", "2", "-0.050 [-0.100, +0.000]"]
    assert rows[0][3] == "+0.000 [+0.000, +0.000]"
    assert differences(runs, "svfit-full") == ""


def test_a_seed_counts_when_it_has_every_concept(results: Path) -> None:
    write_curve(results, "loldu-r8", 0, "beetle_car")
    assert [row[:3] for row in ends_of(results)] == [["loldu-r8", "504", "2"]]
    write_curve(results, "lora-r4", 0, "beetle_car")
    assert [row[2] for row in ends_of(results)] == ["2", "2"]  # seed 1 lacks the car


def test_the_judge_distinguishes_the_class_from_other_things() -> None:
    scorer = CurveScorer(judge := Judge("dotted_rabbit"))
    rng = random.Random(0)
    place = {"background": "meadow", "size": "large", "position": "center"}
    concept = render(judge.concept | place, rng)
    empty = Image.new("RGB", (64, 64), "white")
    scenes = [render(scene, rng) for scene in judge.others[:8]]
    assert len(scorer.drift_prompts()) == 4 + len(scenes)
    shown = Pictures(
        true=[concept],
        concept=[concept] * 16,
        prompts=["a photo of a toy on grass"] * 16,
        others=[concept, concept, concept, concept, *scenes] * 2,
        base=[empty] * 24,
    )
    scores = scorer.score(shown)
    assert tuple(scores) == METRICS
    assert scores["others"] > 0.9
    assert scores["leak"] == scores["concept"] > 0.7
    assert scores["background"] == 1 / 8
    assert scores["drift"] > 0


@pytest.mark.parametrize("name", ["pocket_curves", "pocket_curves_tuning"])
def test_every_row_has_valid_options(name: str) -> None:
    experiment = read_experiment(name)
    for row in experiment.rows:
        run = next(experiment.runs(row, "pocket"))
        options = {**run.options, "validation_prompt": ["a toy"]}
        config_of(run, entry(run.data), Path("x"), Path("y"), options)
