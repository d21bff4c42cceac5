"""The table, the picture and the judge of the learning curves."""

import json
from pathlib import Path

import pytest
from PIL import Image

from eval.protocols.live import Pictures
from experiments.pocket_concepts.judge import Judge
from experiments.pocket_curves.__main__ import Options, main
from experiments.pocket_curves.report import differences, picture, table
from experiments.pocket_curves.scorer import METRICS, CurveScorer
from experiments.pocket_curves.variants import VARIANTS, WORD
from pocket.render import render
from trainer.options.preset import parse


@pytest.fixture
def results(tmp_path: Path) -> Path:
    for variant, parameters in (("lora-r4", 59136), ("loldu-r8", 504)):
        (tmp_path / variant).mkdir()
        for seed, last in ((0, 0.3), (1, 0.5)):
            points = [
                {"step": step, **dict.fromkeys(METRICS, value)}
                for step, value in ((0, 0.2), (60, last))
            ]
            record = {"flags": [], "parameters": parameters, "points": points}
            record |= {"concept": "striped_cat", "seed": seed}
            (tmp_path / variant / f"striped_cat-{seed}.json").write_text(json.dumps(record))
    return tmp_path


def test_the_table_tells_the_end_of_every_curve_with_its_spread(results: Path) -> None:
    rows = [line.strip("| ").split(" | ") for line in table(results).splitlines()]
    assert rows[2][:5] == ["loldu-r8", "504", "2", "60", "0.400 ± 0.141"]
    assert rows[3][0] == "lora-r4"
    assert len(rows[2]) == 4 + len(METRICS)
    before = picture(results).tobytes()
    (results / "lora-r4" / "striped_cat-1.json").unlink()
    assert picture(results).tobytes() != before


def test_differences_are_those_of_runs_of_one_concept_and_seed(results: Path) -> None:
    other = results / "lora-r4" / "striped_cat-1.json"
    record = json.loads(other.read_text())
    record["points"][-1]["dino"] = 0.4  # 0.1 less than loldu-r8 of that seed
    other.write_text(json.dumps(record))
    rows = [line.strip("| ").split(" | ") for line in differences(results, "loldu-r8").splitlines()]
    assert len(rows) == 3
    assert rows[2][:3] == ["lora-r4", "2", "-0.050 [-0.100, +0.000]"]
    assert rows[2][3] == "+0.000 [+0.000, +0.000]"
    assert differences(results, "svfit-full") == ""


def test_a_seed_counts_when_it_has_every_concept(results: Path) -> None:
    before = table(results)
    run = json.loads((results / "lora-r4" / "striped_cat-0.json").read_text())
    for variant in ("lora-r4", "loldu-r8"):
        other = results / variant / "tall_bear-0.json"
        other.write_text(json.dumps(run | {"concept": "tall_bear"}))
    rows = [line.strip("| ").split(" | ") for line in table(results).splitlines()]
    assert [row[2] for row in rows[2:]] == ["2", "2"]  # seed 1 lacks the bear
    (results / "lora-r4" / "tall_bear-0.json").unlink()
    assert [line.split(" | ")[0] for line in table(results).splitlines()[2:]] == ["| loldu-r8"]
    (results / "loldu-r8" / "tall_bear-0.json").unlink()
    assert table(results) == before


def test_the_judge_tells_the_class_from_other_things() -> None:
    import random

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


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_is_a_command_line(name: str) -> None:
    word = WORD in VARIANTS[name].flags
    token = "<new>" if word else "sks"
    argv = ["--preset", "pocket", "--output_dir", "x", "--instance_data_dir", "y"]
    argv += ["--instance_prompt", f"a {token} toy", *(["--initializer_token", "toy"] * word)]
    parse([*argv, *VARIANTS[name].flags.split()])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(variants=("loldu-r9",)), "--variants loldu-r9 is not known"),
        (Options(concepts=("cat",)), "--concepts cat is not known"),
        (Options(concepts=("striped_cat",), tune=True), "choose from tuning_toy, tuning_car"),
        (Options(flags="--learning_rate 1"), "--flags is for --tune"),
    ],
)
def test_a_mistake_is_told(options: Options, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        main(options)
