from pathlib import Path

import pytest

from experiments import config

EXPERIMENT = """
title = "A table"
source = "Table Z"
kind = "vision"
metric = "accuracy"

[pocket]
model = "a/base"
data = ["one", "two"]
seeds = [0, 1]
summary = "median"

[pocket.options]
r = 4

[pocket.recipe]
learning_rate = 0.1
epochs = 2

[pocket.per_data.two]
epochs = 3

[full]
model = "b/base"
data = ["one"]
seeds = [7]

[rows.plain]
label = "Plain"
method = "lora"
recipe = { learning_rate = 0.2 }
pocket.per_data.two = { learning_rate = 0.3 }
paper = { one = 50.0, parameters = 10 }

[rows.better]
label = "Better"
method = "loldu"
options = { pivoting = "complete" }
pocket.options = { r = 8 }

[rows.shared]
label = "The same as plain"
same_as = "sample/plain"
"""


@pytest.fixture
def sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Experiment:
    """Return an experiment with three rows, read from a temporary folder."""
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "sample.toml").write_text(EXPERIMENT)
    monkeypatch.setattr(config, "TABLES", tmp_path / "tables")
    config.read_experiment.cache_clear()
    yield config.read_experiment("sample")
    config.read_experiment.cache_clear()
