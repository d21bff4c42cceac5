from pathlib import Path

import pytest

from experiments import config
from experiments.claims import read_claims
from experiments.config import Experiment, experiment_names, read_experiment
from experiments.data import entries
from experiments.kinds import KINDS, methods_of
from loldu.errors import LoLDUError


def test_specific_options_win_over_general_ones(sample: Experiment) -> None:
    runs = {r.data: r for r in sample.runs(sample.row("plain"), "pocket") if r.seed == 0}
    assert (runs["one"].recipe.learning_rate, runs["one"].recipe.epochs) == (0.2, 2)
    assert (runs["two"].recipe.learning_rate, runs["two"].recipe.epochs) == (0.3, 3)
    better = next(sample.runs(sample.row("better"), "pocket"))
    assert better.options == {"r": 8, "pivoting": "complete"}
    assert better.recipe.learning_rate == 0.1
    full = next(sample.runs(sample.row("better"), "full"))
    assert (full.model, full.seed, full.options) == ("b/base", 7, {"pivoting": "complete"})


def test_shared_rows_are_the_same_runs(sample: Experiment) -> None:
    shared = list(sample.runs(sample.row("shared"), "pocket"))
    assert shared == list(sample.runs(sample.row("plain"), "pocket"))
    assert len(shared) == 4


@pytest.mark.parametrize(
    ("was", "becomes", "message"),
    [
        ("metric =", "metrik =", "unknown key metrik; perhaps you meant metric"),
        ("epochs = 2", "epoch = 2", "unknown key epoch; perhaps you meant"),
        ('method = "lora"', "", "plain needs either a method or same_as"),
        ("recipe = {", "recipes = {", "unknown key recipes in .rows.plain.; perhaps you meant"),
        ("label", "label = = 1", "cannot be read as TOML"),
        ("sample/plain", "sample/plane", "perhaps you meant plain"),
        (
            '"median"',
            '"meadian"',
            "no summary meadian; perhaps you meant median",
        ),
        (
            "per_data.two",
            "per_data.tow",
            "no dataset tow; perhaps you meant two",
        ),
        (
            "pocket.per_data.two = {",
            "pocket.per_data.tow = {",
            "rows.plain.pocket.per_data. has no dataset tow; perhaps you meant two",
        ),
        ("label", 'scales = ["pockit"]\nlabel', "no scale pockit; perhaps you"),
        ("epochs = 2", "epochs = 0", "epochs is 0; it must be at least 1"),
        ("epochs = 2", "epochs = 2.5", "epochs is 2.5; it must be a whole number"),
        ("= 0.1", '= "1e-3"', "learning_rate is '1e-3'; it must be a number"),
        (
            "epochs = 2",
            'lr_scheduler = "cosin"',
            "lr_scheduler is 'cosin'; it must be linear",
        ),
        (
            "epochs = 2",
            "micro_batch_size = 0",
            "micro_batch_size is 0; it must be at least 1",
        ),
        ("epochs = 2", "micro_batch_size = 5", "a multiple of micro_batch_size"),
    ],
)
def test_mistakes_are_reported(sample: Experiment, was: str, becomes: str, message: str) -> None:
    path = config.TABLES / "sample.toml"
    path.write_text(path.read_text().replace(was, becomes, 1))
    read_experiment.cache_clear()
    with pytest.raises(LoLDUError, match=message) as error:
        _all_runs()
    assert "\n" not in str(error.value)


def _all_runs() -> None:
    experiment = read_experiment("sample")
    for row in experiment.rows:
        list(experiment.runs(row, "pocket"))


def test_unknown_experiment_is_reported(sample: Experiment) -> None:
    with pytest.raises(LoLDUError, match="no experiment sampel; perhaps you meant sample"):
        read_experiment("sampel")


@pytest.mark.parametrize("name", experiment_names())
def test_shipped_configs(name: str) -> None:
    """Every shipped file is valid, and its datasets and methods exist."""
    experiment = read_experiment(name)
    assert experiment.kind in KINDS
    for scale, here in experiment.scales.items():
        assert set(here.data) <= set(entries())
        if scale == "pocket":
            assert Path(here.model).is_dir()
        for row in experiment.rows_at(scale):
            runs = list(experiment.runs(row, scale))
            assert len(runs) == len(here.data) * len(row.seeds or here.seeds)
            assert {run.method for run in runs} <= set(methods_of(experiment.kind))
        if scale == "full":
            columns = {*(experiment.columns or here.data), "parameters", "share", "average"}
            for row in experiment.rows_at(scale):
                assert set(row.paper) <= columns


@pytest.mark.parametrize(
    ("name", "ours", "other"),
    [
        ("glue", "loldu", "svfit"),
        ("glue_large", "loldu", "svfit"),
        ("instruct", "loldu", "svfit"),
        ("vision", "loldu-full", "svfit-full"),
        ("vision", "loldu-twelfth", "svfit-twelfth"),
        ("personalization", "loldu-r32", "svfit-r32"),
    ],
)
def test_svfit_is_loldu_with_other_factors(name: str, ours: str, other: str) -> None:
    experiment = read_experiment(name)
    pairs = zip(
        experiment.runs(experiment.row(ours), "full"),
        experiment.runs(experiment.row(other), "full"),
        strict=True,
    )
    for one, two in pairs:
        assert two.settings() == {**one.settings(), "method": "svfit"}


def test_shipped_claims_compare_existing_rows() -> None:
    claims = read_claims()
    assert claims
    for claim in claims:
        experiment = read_experiment(claim.experiment)
        for pair in claim.pairs:
            for name in pair:
                assert "pocket" in experiment.row(name).scales
