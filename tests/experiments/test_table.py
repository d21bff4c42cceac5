import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.claims import Claim, claims_table, difference, verdict
from experiments.config import (
    FOLDER,
    Experiment,
    experiment_names,
    paper_experiments,
    read_experiment,
)
from experiments.document import filled, section
from experiments.results import Results
from experiments.table import markdown, measured_rows
from loldu.errors import LoLDUError
from tests.experiments.results import write_result


def test_cells(sample: Experiment, tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    scores = {("one", 0): 60.0, ("one", 1): 70.0, ("two", 0): 80.0}
    for run in sample.runs(sample.row("plain"), "pocket"):
        if (run.data, run.seed) in scores:
            write_result(tmp_path / "results", run, scores[run.data, run.seed])
    plain, better, shared = measured_rows(sample, "pocket", results)
    assert str(plain.cells["one"]) == "65.00 ± 7.07"
    assert str(plain.cells["two"]) == "80.00, 1 of 2 seeds"
    assert str(plain.average) == "70.00, 1 of 2 seeds"  # of seed 0, which has both
    assert shared.cells == plain.cells
    assert str(better.cells["one"]) == "not run"
    assert (plain.parameters, better.parameters) == (12, None)


def test_paper_beside_measured(sample: Experiment, tmp_path: Path) -> None:
    run = next(sample.runs(sample.row("plain"), "full"))
    table = markdown(sample, "full", Results(tmp_path))
    assert table.startswith("Not run; the numbers are the paper's.\n\n| method |")
    assert "| Plain | 10 | 50.00 |" in table
    better = next(sample.runs(sample.row("better"), "full"))
    write_result(tmp_path, better, 48.5)
    assert "| Plain | not run (paper 10) | not run (paper 50.00) |" in markdown(
        sample, "full", Results(tmp_path)
    )
    write_result(tmp_path, run, 48.5)
    table = markdown(sample, "full", Results(tmp_path))
    assert "| Plain | 12 (paper 10) | 48.50 (paper 50.00, -1.50) |" in table


def test_the_average_is_that_of_the_shown_columns(sample: Experiment, tmp_path: Path) -> None:
    object.__setattr__(sample.at("pocket"), "seeds", (0, 1, 2))
    scores = {"one": (10.0, 20.0, 90.0), "two": (80.0, 10.0, 30.0)}
    for run in sample.runs(sample.row("plain"), "pocket"):
        write_result(tmp_path, run, scores[run.data][run.seed])
    line = measured_rows(sample, "pocket", Results(tmp_path))[0]
    assert [cell.value for cell in line.cells.values()] == [20.0, 30.0]  # medians
    assert line.average.value == 25.0  # where the median of the seeds' averages is 45
    assert line.average.values == (45.0, 15.0, 60.0)


def test_shares_of_the_base(sample: Experiment, tmp_path: Path) -> None:
    object.__setattr__(sample, "shares", True)
    run = next(sample.runs(sample.row("plain"), "pocket"))
    write_result(tmp_path, run, 1.0, facts={"base_parameters": 2400})
    table = markdown(sample, "pocket", Results(tmp_path))
    assert "| method | parameters | share, % |" in table
    assert "| Plain | 12 | 0.5 |" in table


def test_columns_may_be_scores(sample: Experiment, tmp_path: Path) -> None:
    object.__setattr__(sample, "columns", ("dino", "clip"))
    for run in sample.runs(sample.row("plain"), "pocket"):
        if run.seed == 0 or run.data == "one":
            scores = {"dino": 0.5 if run.data == "one" else 0.7, "clip": 0.1}
            write_result(tmp_path, run, 0.0, scores=scores)
    line = measured_rows(sample, "pocket", Results(tmp_path))[0]
    assert line.cells["dino"].values == pytest.approx((0.6,))  # seed 1 lacks a dataset
    assert line.average.values == pytest.approx((0.35,))


def test_a_result_with_other_settings_is_refused(sample: Experiment, tmp_path: Path) -> None:
    run = next(sample.runs(sample.row("plain"), "pocket"))
    write_result(tmp_path, run, 1.0, settings={**run.settings(), "method": "ft"})
    with pytest.raises(LoLDUError, match="other settings"):
        Results(tmp_path).read(run)
    Results(tmp_path).file(run.experiment).write_text("{")
    with pytest.raises(LoLDUError, match=r"Line 1 of .* is not a result"):
        Results(tmp_path).read(run)


def test_claims_are_paired(sample: Experiment, tmp_path: Path) -> None:
    # Datasets differ by far more than the rows do: only pairs can tell.
    for name, more in (("plain", 0.0), ("better", 1.0)):
        for run in sample.runs(sample.row(name), "pocket"):
            level = 20.0 if run.data == "one" else 90.0
            write_result(tmp_path, run, level + more * (1 + 0.1 * run.seed))
    claim = Claim("is it?", "sample", [("better", "plain")])
    table = claims_table([claim], "pocket", Results(tmp_path))
    row = table.splitlines()[-1]
    assert row == "| is it? | Better (12) less Plain (12) | 2 x 2 | +1.05 [+0.898, +1.2] | better |"


def test_verdicts() -> None:
    def records(*scores: float) -> list[dict[str, float | str]]:
        return [{"data": "d", "seed": i, "score": s} for i, s in enumerate(scores)]

    one, other = records(1.0, 2.0, 3.0), records(2.0, 1.0, 3.5)
    found = difference([(one, other)])
    assert found is not None
    assert found.mean == pytest.approx((-1 + 1 - 0.5) / 3)
    assert verdict(found) == "no clear difference"
    worse = difference([(one, records(2.0, 3.5, 4.0))])
    assert worse is not None
    assert verdict(worse) == "worse"
    assert difference([(one, [])]) is None
    once = difference([(records(5.0), records(1.0))])
    assert once is not None
    assert verdict(once) == "no clear difference"  # one run says nothing of chance


def test_the_interval_of_one_dataset_is_that_of_student() -> None:
    from scipy.stats import ttest_1samp

    ours, theirs = (5.0, 3.0, 4.5, 6.0), (4.0, 3.5, 3.0, 4.0)
    sides = [
        [{"data": "d", "seed": i, "score": s} for i, s in enumerate(scores)]
        for scores in (ours, theirs)
    ]
    found = difference([(sides[0], sides[1])])
    assert found is not None
    low, high = ttest_1samp(np.subtract(ours, theirs), 0).confidence_interval()
    assert (found.low, found.high) == pytest.approx((low, high))
    # Repeating a pair adds no evidence.
    assert difference([(sides[0], sides[1])] * 2) == found


def test_chance_is_rarely_called_a_difference() -> None:
    rng = np.random.default_rng(0)
    for data, seeds in ((1, 3), (2, 2), (4, 3)):
        verdicts = []
        for _ in range(400):
            one, other = (
                [
                    {"data": f"{d}", "seed": s, "score": 10.0 * d + rng.normal()}
                    for d in range(data)
                    for s in range(seeds)
                ]
                for _ in range(2)
            )
            found = difference([(one, other)])
            assert found is not None
            verdicts.append(verdict(found))
        assert verdicts.count("no clear difference") / 400 == pytest.approx(0.95, abs=0.03)


def test_documents_are_filled_between_marks(sample: Experiment, tmp_path: Path) -> None:
    run = next(sample.runs(sample.row("plain"), "full"))
    write_result(tmp_path, run, 48.5)
    text = "By hand.\n<!-- begin sample -->\nold\n<!-- end sample -->\nMore by hand.\n"
    made = filled(text, Results(tmp_path))
    assert made.startswith("By hand.\n<!-- begin sample -->\n")
    assert made.endswith("<!-- end sample -->\nMore by hand.\n")
    assert "old" not in made
    assert "48.50 (paper 50.00, -1.50)" in made
    assert "run sample --scale full" in made
    assert filled(made, Results(tmp_path)) == made
    with pytest.raises(LoLDUError, match="marks simple: choose from"):
        filled(text.replace("sample", "simple"), Results(tmp_path))


@pytest.mark.parametrize(
    ("document", "experiments"),
    [
        ("reproduction.md", paper_experiments()),
        ("pocket.md", ["pocket_concepts", "pocket_concepts_tuning"]),
        ("pocket.md", ["pocket_two_things", "pocket_always_on"]),
        ("eval.md", ["metric_trust"]),
    ],
)
def test_documents_show_the_results(document: str, experiments: list[str]) -> None:
    """The tables of a document equal those of the committed results, to the byte."""
    text = (FOLDER.parent / "docs" / document).read_text(encoding="utf-8")
    assert filled(text, Results()) == text
    assert all(f"<!-- begin {name} -->" in text for name in experiments)


def test_every_committed_result_belongs_to_a_run() -> None:
    """Every stored line belongs to a run and has the settings of its row."""
    results = Results()
    runs = {
        (run.experiment, *run.key): run
        for name in experiment_names()
        for scale in read_experiment(name).scales
        for row in read_experiment(name).rows_at(scale)
        for run in read_experiment(name).runs(row, scale)
    }
    for name in experiment_names():
        file = results.file(name)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        for record in map(json.loads, lines):
            key = (name, record["scale"], record["row"], record["data"], record["seed"])
            assert results.read(runs[key]) == record


def test_results_of_another_base_are_named_as_such(tmp_path: Path) -> None:
    experiment = read_experiment("pocket_concepts")
    run = next(experiment.runs(experiment.row("base"), "pocket", ["striped_cat"]))
    scores = dict.fromkeys(("dino", "clip_i", "clip_t", "concept", "background", "others"), 0.2)
    more: dict[str, Any] = {"scores": scores | {"leak": 0.2}}
    shipped = json.loads(Path("pocket/base.json").read_text())["weights"]
    for digest, said in (("0123456789abcdef", True), (shipped, False)):
        facts = {"base": digest, "real": {"dino": 1.0, "clip_i": 1.0}}
        write_result(tmp_path, run, 0.2, **more, facts=facts)
        made = section(experiment, Results(tmp_path))
        assert (f"of an earlier pocket base (`{digest}`)" in made) is said
