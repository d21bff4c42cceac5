"""Which metric to believe: the scorer on true renders, and the table against scipy."""

import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr

from eval.metrics import METRICS
from eval.protocols.live import Pictures
from experiments.config import read_experiment
from experiments.data import entry
from experiments.kinds import by_trainer, metrics, table_of
from experiments.kinds.by_trainer import config_of
from experiments.kinds.concepts.judge import BACKGROUNDS, Judge
from experiments.kinds.metrics import MetricScorer
from experiments.kinds.metrics.table import resampled, spearman, within
from experiments.results import Results
from pocket.captions import setting_phrase
from pocket.render import render
from tests.experiments.results import write_result

EXPERIMENT = read_experiment("metric_trust")
RUNS = [run for row in EXPERIMENT.rows for run in EXPERIMENT.runs(row, "pocket")]
NEEDS_MORE = {"dino_subject", "clip_i_subject", "collapse", "judge_concept", "judge_prompt"}
"""Metrics that need masks, several subjects or a judge."""


def test_there_are_sixty_adapters_of_all_methods() -> None:
    assert len(RUNS) == 60
    assert {run.method for run in RUNS} == {
        *("loldu", "svfit", "lora", "dreambooth", "textual_inversion"),
    }


@pytest.mark.parametrize("row", EXPERIMENT.rows, ids=lambda row: row.name)
def test_every_row_has_valid_options(row) -> None:  # noqa: ANN001
    run = next(EXPERIMENT.runs(row, "pocket"))
    options = {**run.options, "validation_prompt": ["a toy"], "validation_steps": 10**6}
    config_of(run, entry(run.data), Path("x"), Path("y"), options)


def test_true_renders_score_better_than_another_toy() -> None:
    """All but mean average precision, by which the miniature DINO ranks few toys rightly."""
    scorer = MetricScorer(judge := Judge("dotted_rabbit"))
    rng = random.Random(0)

    def drawn(look: dict, backgrounds: tuple[str, ...]) -> list[Image.Image]:
        return [
            render(look | {"background": name, "size": "large", "position": "center"}, rng)
            for name in backgrounds
        ]

    scenes = [render(scene, rng) for scene in judge.others[:8]]
    plain = drawn({"kind": "toy", **Judge("striped_cat").concept}, BACKGROUNDS[:4])
    base = [*plain, *scenes] * 2
    prompts = [f"a photo of a toy {setting_phrase(name)}" for name in BACKGROUNDS] * 2

    def score(look: dict, backgrounds: tuple[str, ...], others: list) -> dict[str, float]:
        concept = drawn(look, backgrounds) + drawn(look, backgrounds)
        return scorer.score(Pictures([], concept, prompts, others, base))

    right = score(judge.concept, BACKGROUNDS, base)
    wrong = score(Judge("tall_bear").concept, BACKGROUNDS[::-1], base[::-1])
    assert right.keys() == {*METRICS} - NEEDS_MORE | {"concept", "background", "others", "leak"}
    assert right["concept"] > 0.7 > wrong["concept"]
    assert right["background"] > 0.7 > wrong["background"]
    for name in ("dino", "clip_i", "clip_t", "clip_t_context", "rank_top1"):
        assert right[name] > wrong[name], name
    for name in ("drift", "drift_dino"):
        assert right[name] == pytest.approx(0, abs=1e-5)
        assert wrong[name] > 0.01


def test_two_adapters_are_trained_scored_and_correlated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_trainer, "CLASS_PICTURES", tmp_path / "class")
    short = {"validation_images": 2, "num_inference_steps": 1, "num_class_images": 3}
    short |= {"max_train_steps": 1, "lr_warmup_steps": 0, "train_batch_size": 1, "rank": 1}
    short |= {"normalize_directions": False}
    rows = ("loldu-full", "lora-r4")
    made = [run for run in RUNS if run.row in rows and run.data == "striped_cat"]
    assert [run.row for run in made] == ["loldu-full", "lora-r4"]
    for run in made:
        outcome = metrics.run(replace(run, options={**run.options, **short}), tmp_path / run.row)
        assert outcome.scores.keys() >= {*METRICS} - NEEDS_MORE - {"near_copies"}
        assert outcome.score == outcome.scores["concept"]
        assert outcome.facts["steps"] == 1
        assert outcome.parameters > 0
        write_result(tmp_path, run, outcome.score, scores=outcome.scores)
    assert table_of(EXPERIMENT, "pocket", Results(tmp_path)) == "Not run."  # two have no rank
    third = next(run for run in RUNS if run.row == "svfit-full")
    write_result(tmp_path, third, 0.9, scores=dict.fromkeys(outcome.scores, 0.9))
    assert "3 adapters of 1 concepts" in table_of(EXPERIMENT, "pocket", Results(tmp_path))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), n=st.integers(3, 12))
def test_correlations_are_those_of_scipy(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 5, (2, 4, n)).astype(float)  # with ties
    a[0] = 1
    got = spearman(a, b)
    assert np.isnan(got[0])
    for x, y, value in zip(a[1:], b[1:], got[1:], strict=True):
        if len({*x}) > 1 and len({*y}) > 1:
            assert value == pytest.approx(spearmanr(x, y).statistic, abs=1e-12)
        else:
            assert np.isnan(value)


def test_resampling_keeps_the_number_of_adapters_of_each_concept() -> None:
    concepts = ["a", "b", "a", "b", "b"]
    places = resampled(concepts, 200)
    assert places[0].tolist() == [0, 1, 2, 3, 4]
    names = np.array(concepts)[places]
    assert (names == concepts).all()
    assert len({tuple(row) for row in places}) > 50


def test_the_table_says_which_metric_to_believe(tmp_path: Path) -> None:
    """Twelve adapters of two concepts: DINO knows the truth, drift knows the other prompts."""
    rng = np.random.default_rng(0)
    rows: list[dict] = []
    for run in (run for run in RUNS if run.data in ("striped_cat", "beetle_car")):
        if len(rows) == 12:
            break
        truth = {name: rng.random() for name in ("concept", "background", "others")}
        scores = {
            **truth,
            "dino": truth["concept"] ** 3 - (run.data == "striped_cat"),
            "clip_i": truth["concept"] + rng.normal() / 3,
            "clip_t": rng.random(),
            "drift": 1 - truth["others"],
            "near_copies": 0.0,
        }
        write_result(tmp_path, run, truth["concept"], scores=scores)
        rows.append({"data": run.data, "scores": scores})
    text = table_of(EXPERIMENT, "pocket", Results(tmp_path))
    about, table, end = text.split("\n\n")
    assert "12 adapters of 2 concepts" in about
    cells = {line.split(" | ")[0].strip("| "): line.split(" | ") for line in table.splitlines()[2:]}
    for title, name, sign in (("DINO", "dino", 1), ("CLIP-I", "clip_i", 1), ("drift", "drift", -1)):
        for column, truth in enumerate(("concept", "background", "others"), start=1):
            columns = ([row["scores"][key] for row in rows] for key in (name, truth))
            expected = sign * spearmanr(*columns).statistic
            assert cells[title][column].split()[0] == f"{expected:.2f}"
    values = [float(cell[1].split()[0]) for cell in cells.values() if cell[1] != "constant"]
    assert values == sorted(values, reverse=True)
    assert cells["near-copies"][1] == "constant"
    assert within(rows, "dino", "concept") == pytest.approx(1)
    assert cells["DINO"][-1].strip(" |") == "1.00"
    assert "- The attributes of other prompts: believe drift." in end
