from pathlib import Path

import pytest

from experiments.claims import Claim, claims_table, difference, verdict
from experiments.config import FOLDER, Experiment, experiment_names
from experiments.document import filled
from experiments.results import Results
from experiments.table import lines_of, markdown
from tests.experiments.conftest import write_result
from trainer.errors import TrainerError


def test_cells(sample: Experiment, tmp_path: Path) -> None:
    results = Results(tmp_path / "results")
    scores = {("one", 0): 60.0, ("one", 1): 70.0, ("two", 0): 80.0}
    for run in sample.runs(sample.row("plain"), "pocket"):
        if (run.data, run.seed) in scores:
            write_result(tmp_path / "results", run, scores[run.data, run.seed])
    plain, better, shared = lines_of(sample, "pocket", results)
    assert str(plain.cells["one"]) == "65.00 ± 7.07"
    assert str(plain.cells["two"]) == "80.00, 1 of 2 seeds"
    assert str(plain.average) == "70.00, 1 of 2 seeds"  # of seed 0, which has both
    assert shared.cells == plain.cells
    assert str(better.cells["one"]) == "not run"
    assert (plain.parameters, better.parameters) == (12, None)


def test_paper_beside_measured(sample: Experiment, tmp_path: Path) -> None:
    run = next(sample.runs(sample.row("plain"), "full"))
    assert "not run (paper 50.00)" in markdown(sample, "full", Results(tmp_path))
    write_result(tmp_path, run, 48.5)
    table = markdown(sample, "full", Results(tmp_path))
    assert "| Plain | 12 (paper 10) | 48.50 (paper 50.00, -1.50) |" in table


def test_columns_may_be_scores(sample: Experiment, tmp_path: Path) -> None:
    object.__setattr__(sample, "columns", ("dino", "clip"))
    for run in sample.runs(sample.row("plain"), "pocket"):
        if run.seed == 0 or run.data == "one":
            scores = {"dino": 0.5 if run.data == "one" else 0.7, "clip": 0.1}
            write_result(tmp_path, run, 0.0, scores=scores)
    line = lines_of(sample, "pocket", Results(tmp_path))[0]
    assert line.cells["dino"].values == pytest.approx((0.6,))  # seed 1 lacks a data set
    assert line.average.values == pytest.approx((0.35,))


def test_other_settings_are_no_result(sample: Experiment, tmp_path: Path) -> None:
    run = next(sample.runs(sample.row("plain"), "pocket"))
    write_result(tmp_path, run, 1.0, settings={**run.settings(), "method": "ft"})
    with pytest.raises(TrainerError, match="other settings"):
        Results(tmp_path).read(run)
    Results(tmp_path).file(run).write_text("{")
    with pytest.raises(TrainerError, match="cannot be read"):
        Results(tmp_path).read(run)


def test_claims_are_paired(sample: Experiment, tmp_path: Path) -> None:
    # Data sets differ by far more than the rows do: only pairs can tell.
    for name, more in (("plain", 0.0), ("better", 1.0)):
        for run in sample.runs(sample.row(name), "pocket"):
            level = 20.0 if run.data == "one" else 90.0
            write_result(tmp_path, run, level + more * (1 + 0.1 * run.seed))
    claim = Claim("is it?", "sample", [("better", "plain")])
    table = claims_table([claim], "pocket", Results(tmp_path))
    row = table.splitlines()[-1]
    assert row == "| is it? | Better (12) less Plain (12) | 4 | +1.05 [+1, +1.1] | better |"


def test_verdicts() -> None:
    def records(*scores: float) -> list[dict[str, float | str]]:
        return [{"data": "d", "seed": i, "score": s} for i, s in enumerate(scores)]

    one, other = records(1.0, 2.0, 3.0), records(2.0, 1.0, 3.5)
    found = difference([(one, other)])
    assert found is not None
    assert found.mean == pytest.approx((-1 + 1 - 0.5) / 3)
    assert verdict(found) == "no difference"
    worse = difference([(one, records(2.0, 3.5, 4.0))])
    assert worse is not None
    assert verdict(worse) == "worse"
    assert difference([(one, [])]) is None


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
    with pytest.raises(TrainerError, match="marks simple: choose from"):
        filled(text.replace("sample", "simple"), Results(tmp_path))


def test_the_document_shows_the_results() -> None:
    """What docs/reproduction.md says was measured is what the results say."""
    text = (FOLDER.parent / "docs" / "reproduction.md").read_text(encoding="utf-8")
    assert filled(text, Results()) == text
    assert all(f"<!-- begin {name} -->" in text for name in experiment_names())
