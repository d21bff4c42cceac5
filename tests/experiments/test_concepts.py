"""Tables and sheet of judged concepts."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from PIL import Image

from experiments.config import Experiment, read_experiment
from experiments.kinds import concepts, table_of
from experiments.kinds.by_trainer import config_of
from experiments.kinds.concepts import strip
from experiments.kinds.concepts.judge import (
    BACKGROUNDS,
    ROUTED,
    SEEDS_EACH,
    TUNING,
    Judge,
    pictures_of,
)
from experiments.kinds.concepts.table import by_method, comparison, read
from experiments.outcome import Outcome
from experiments.results import Results
from loldu.errors import LoLDUError
from pocket.world import CONCEPTS, as_seen, is_held_out
from tests.experiments.results import write_result

EXPERIMENT = read_experiment("pocket_concepts")
SCORES = dict.fromkeys(("dino", "clip_i", "clip_t", "concept", "background", "others", "leak"), 0.2)


def write_scores(folder: Path, experiment: Experiment = EXPERIMENT) -> None:
    base = next(experiment.runs(experiment.row("base"), "pocket", ["striped_cat"]))
    real = {"dino": 0.6, "clip_i": 1.0}
    write_result(folder, base, 0.2, scores=SCORES, facts={"real": real})
    for run in experiment.runs(experiment.row("loldu"), "pocket", ["striped_cat"]):
        if run.seed < 2:
            scores = SCORES | {"dino": 0.3 + 0.2 * run.seed, "clip_i": 0.6}
            write_result(folder, run, 0.2, scores=scores, parameters=7224)


def test_the_gap_closed_is_the_share_of_the_way_from_base_to_real(tmp_path: Path) -> None:
    write_scores(tmp_path)
    methods, by_concept = table_of(EXPERIMENT, "pocket", Results(tmp_path)).split("\n\n")
    row = methods.splitlines()[-1].split(" | ")
    assert row[:5] == ["| loldu", "7,224", "2", "0.50", "0.50"]
    assert row[5] == "0.400 ± 0.141"
    assert by_concept.splitlines()[-1] == "| striped_cat | 0.50 / 0.50 |"


def test_routed_concepts_have_a_row_with_the_other_prompts_of_the_base(tmp_path: Path) -> None:
    write_scores(tmp_path)
    run = next(EXPERIMENT.runs(EXPERIMENT.row("loldu"), "pocket", ["striped_cat"]))
    scores = dict.fromkeys(SCORES, 0.4)
    called = {f"{ROUTED}{name}": 0.6 for name in ("dino", "clip_i", "concept")}
    write_result(tmp_path, run, 0.4, scores=scores | called, parameters=7224)
    *_, both, routed = by_method(*read(EXPERIMENT, "pocket", Results(tmp_path))).splitlines()
    assert both.split(" | ")[0] == "| loldu"
    cells = routed.split(" | ")
    assert cells[:4] == ["| loldu, routed", "7,224", "1", "1.00"]
    columns = (cell.split(" ± ")[0] for cell in cells[-4:])
    assert [*columns] == ["0.600", "0.200", "0.200", "0.200"]  # others and leak: the base's


def test_a_routed_lora_leaves_the_unconditional_rows_to_the_base(
    pipeline: StableDiffusionPipeline,
) -> None:
    unet = pipeline.unet
    rows, text = torch.randn(4, 4, 8, 8), torch.randn(4, 77, unet.config.cross_attention_dim)
    with torch.no_grad():
        base = unet(rows, 5, text, return_dict=False)[0]
        unet.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]))
        adapted = unet(rows, 5, text, return_dict=False)[0]
        with concepts.routed(pipeline, "sks"):
            each = unet(rows, 5, encoder_hidden_states=text, return_dict=False)[0]
        after = unet(rows, 5, text, return_dict=False)[0]
    assert torch.allclose(each, torch.cat([base[:2], adapted[2:]]), atol=1e-6)
    assert not torch.allclose(adapted, base, atol=1e-3)
    assert torch.equal(after, adapted)


def test_a_concept_without_a_result_of_the_base_is_reported(tmp_path: Path) -> None:
    write_scores(tmp_path)
    run = next(EXPERIMENT.runs(EXPERIMENT.row("loldu"), "pocket", ["tall_bear"]))
    write_result(tmp_path, run, 0.2, scores=SCORES)
    with pytest.raises(LoLDUError, match="no result of the base on tall_bear"):
        table_of(EXPERIMENT, "pocket", Results(tmp_path))


def test_strips_of_pictures_make_the_sheet(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = [
        Image.fromarray(pixels)
        for pixels in rng.integers(
            0, 255, (SEEDS_EACH * len(BACKGROUNDS), 64, 64, 3), dtype=np.uint8
        )
    ]
    file, results = tmp_path / "strip.png", Results(tmp_path)
    strip(noise).save(file)
    assert np.array_equal(
        np.asarray(Image.open(file))[:, 64:128], np.asarray(noise[2 * SEEDS_EACH])
    )
    assert comparison(EXPERIMENT, "pocket", results) is None
    for row in EXPERIMENT.rows:
        for run in EXPERIMENT.runs(row, "pocket"):
            results.picture(run).parent.mkdir(parents=True, exist_ok=True)
            results.picture(run).write_bytes(file.read_bytes())
    sheet = comparison(EXPERIMENT, "pocket", results)
    assert sheet is not None
    assert sheet.width == (2 + 3 * len(EXPERIMENT.rows)) * 128


def test_the_base_is_judged_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = concepts.judge_of("striped_cat")
    picture = Image.new("RGB", (64, 64), "white")
    drawn = type("Drawn", (), {"concept": [picture] * SEEDS_EACH * len(BACKGROUNDS)})
    monkeypatch.setattr(judge, "draw", lambda pipeline: drawn)
    monkeypatch.setattr(judge, "measure", lambda drawn: SCORES)
    run = next(EXPERIMENT.runs(EXPERIMENT.row("base"), "pocket", ["striped_cat"]))
    outcome = concepts.run(run, tmp_path)
    assert isinstance(outcome, Outcome)
    assert (outcome.score, outcome.parameters) == (0.2, 0)
    assert set(outcome.facts["real"]) == {"dino", "clip_i"}
    assert outcome.picture is not None
    with Image.open(outcome.picture) as shown:
        assert shown.size == (3 * 64, 64)


@pytest.mark.parametrize("name", ["pocket_concepts", "pocket_concepts_tuning"])
def test_every_row_has_valid_options(name: str) -> None:
    from experiments.data import entry

    experiment = read_experiment(name)
    for row in experiment.rows:
        run = next(experiment.runs(row, "pocket"))
        if run.method != "none":
            config_of(run, entry(run.data), Path("x"), Path("y"), run.options)


def test_tuning_uses_no_shipped_concept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, look in TUNING.items():
        assert not is_held_out(look)
        assert len(list(pictures_of(name).glob("*.png"))) == 5


@pytest.mark.parametrize("name", CONCEPTS)
def test_a_concept_beside_another_thing_is_read_on_its_side(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge(name)
    assert {scene["side"] for scene in judge.beside} == {"left", "right"}
    picture = Image.new("RGB", (64, 64))
    seen = [as_seen(scene) for scene in judge.beside]
    reader = SimpleNamespace(read=lambda pixels: seen, heads={})
    monkeypatch.setattr(judge, "classifier", reader)
    pictures = [picture] * len(seen)
    assert judge.measure_beside(pictures) == {"beside": 1, "neighbor": 1}
    seen[:] = [{**scene, "color": "none", "other_color": "none"} for scene in seen]
    found = judge.measure_beside(pictures)
    parts = len(judge.concept) - 1  # all but the kind
    assert found["beside"] == pytest.approx((parts - 1) / parts)
    assert found["neighbor"] < 1
    assert judge.measure_beside([]) == {}
