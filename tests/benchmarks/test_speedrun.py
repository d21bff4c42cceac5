"""The speedrun's rules, on invented results of trainings."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks import speedrun
from benchmarks.speedrun import Options, Speedrun, climb, markdown, read_speedrun
from experiments.config import Run
from experiments.data import entry
from experiments.kinds.by_trainer import config_of
from experiments.results import Results
from loldu.errors import LoLDUError
from tests.experiments.results import write_result

RULES = """
steps = [40, 10, 20]
concepts = ["striped_cat", "beetle_car"]
options = { num_inference_steps = 3 }
[goals]
concept = 0.6
others = 0.9
[entries.fast]
method = "loldu"
preset = "pocket"
[entries.slow]
method = "peft"
preset = "pocket_always_on"
adapter = { peft_type = "IA3" }
options = { learning_rate = 1e-2 }
"""


@pytest.fixture
def rules(tmp_path: Path) -> Speedrun:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    return read_speedrun(file)


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """Train nothing: a car has .4 + steps / 100 of its attributes, a cat .1 less."""
    made: list[Run] = []

    def instead(jobs: list[tuple[str, Run]], results: Results, **_: object) -> int:
        for kind, run in jobs:
            assert kind == "curves"
            steps = run.options["max_train_steps"]
            share = 0.3 + steps / 100 + 0.1 * (run.data == "beetle_car")
            scores = {"concept": share, "others": 0.95}
            more: dict[str, Any] = {"scores": scores, "parameters": 12}
            write_result(tmp_path, run, share, **more, facts={"concept_bytes": 3400})
            made.append(run)
        return 0

    monkeypatch.setattr(speedrun, "run_missing", instead)
    return made


def test_an_entry_is_trained_longer_until_the_means_reach_every_goal(
    rules: Speedrun, trained: list[Run], tmp_path: Path
) -> None:
    result = climb(rules, "fast", Options(), Results(tmp_path))
    # The means are .45, .55 and .75; the car alone would pass with 20 steps.
    assert [run.row for run in trained[::2]] == ["fast@10", "fast@20", "fast@40"]
    assert result["steps"] == 40
    assert result["scores"] == {"concept": 0.75, "others": 0.95}
    assert (result["numbers"], result["bytes"]) == (12, 3400)


def test_an_entry_that_misses_one_goal_has_no_steps(
    rules: Speedrun, trained: list[Run], tmp_path: Path
) -> None:
    harmless = Speedrun(
        rules.steps, rules.concepts, {"concept": 0.5, "others": 0.96}, {}, rules.entries
    )
    assert climb(harmless, "fast", Options(), Results(tmp_path))["steps"] is None


def test_the_table_begins_with_the_fastest(rules: Speedrun) -> None:
    own = {"numbers": 7224, "bytes": 44_000, "scores": {"concept": 0.8, "others": 0.9}}
    results = {
        "never": {**own, "steps": None, "seconds": None},
        "slow": {**own, "steps": 40, "seconds": 20.0},
        "fast": {**own, "steps": 10, "seconds": 4.0},
    }
    lines = markdown({"goals": rules.goals, "results": results}).splitlines()
    assert lines[2] == "| fast | 4.0 | 10 | 7,224 | 44 | 0.80 | 0.90 |"
    assert [line.split(" | ")[:2] for line in lines[3:]] == [
        ["| slow", "20.0"],
        ["| never", "not reached"],
    ]


def test_unknown_entries_and_incomplete_files_are_one_sentence(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    with pytest.raises(LoLDUError, match="has no entry fasst; perhaps you meant fast"):
        read_speedrun(file, ["fasst"])
    file.write_text(RULES.replace("[goals]", "[aims]"))
    with pytest.raises(LoLDUError, match="is not complete"):
        read_speedrun(file)


def test_the_trainer_takes_every_entry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(speedrun, "WORK", tmp_path)
    rules = read_speedrun(Options().file)
    for name in rules.entries:
        run, *_ = rules.runs(name, rules.steps[0], Options())
        subject = entry(run.data)
        scored = {**run.options, "validation_prompt": ["a photo of a sks toy"]}
        config = config_of(run, subject, Path(subject.folder), tmp_path, scored)
        assert config.optimization.max_train_steps == rules.steps[0]
        assert (config.adapter.adapter_config is None) == (run.method != "peft")
