"""Tables and sheet of judged concepts."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig
from PIL import Image

from experiments.config import Experiment, read_experiment
from experiments.kinds import concepts, table_of
from experiments.kinds.by_trainer import Taught, config_of
from experiments.kinds.concepts import judge as judge_module
from experiments.kinds.concepts import strip
from experiments.kinds.concepts.judge import (
    BACKGROUNDS,
    PARTNERS,
    SEEDS_EACH,
    TUNING,
    Judge,
    pictures_of,
)
from experiments.kinds.concepts.table import by_method, comparison, read
from experiments.outcome import Outcome
from experiments.results import Results
from loldu import LoLDUConfig
from loldu.adapter.components import adapted_layers
from loldu.concept.route import routed_words
from loldu.errors import LoLDUError
from pocket.captions import full_caption
from pocket.classifier import AttributeClassifier
from pocket.concepts import render_concept
from pocket.world import COLORS, CONCEPTS, as_seen, color_behind, contrast, is_held_out
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
    names = ("dino", "clip_i", "concept")
    called = {f"{way}_{name}": 0.6 for way in ("routed", "gated-end") for name in names}
    write_result(tmp_path, run, 0.4, scores=scores | called, parameters=7224)
    *_, both, routed, gated = by_method(*read(EXPERIMENT, "pocket", Results(tmp_path))).splitlines()
    assert both.split(" | ")[0] == "| loldu"
    assert gated.split(" | ")[0] == "| loldu, gated-end"
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
        with concepts.routed(pipeline, {"default": ("sks", "toy")}, {}):
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


@pytest.mark.parametrize(
    "name",
    ["pocket_concepts", "pocket_concepts_tuning", "pocket_two_things", "pocket_always_on"],
)
def test_every_row_has_valid_options(name: str) -> None:
    from experiments.data import entry

    experiment = read_experiment(name)
    for row in experiment.rows:
        run = next(experiment.runs(row, "pocket"))
        if run.method != "none":
            options = concepts.Judging.split(run.options)[1]
            config_of(run, entry(run.data), Path("x"), Path("y"), options)


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


@pytest.mark.parametrize("name", CONCEPTS)
def test_two_concepts_are_read_each_on_its_side(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Judge(name)
    partner = CONCEPTS[judge.partner]
    assert PARTNERS[judge.partner] == name
    assert len({scene["background"] for scene in judge.pairs}) > 1
    for scene in judge.pairs:
        behind = color_behind(scene["background"])
        assert all(contrast(look["color"], behind) > 150 for look in (judge.concept, partner))
        caption = full_caption({**scene, "name": "sks", "other_name": "zwx"})
        sides = {"left": "right", "right": "left"}
        thing, other = judge.concept["kind"], partner["kind"]
        assert caption.startswith(f"a sks {thing} to the {sides[scene['side']]} of a zwx {other} ")
    seen = [dict(as_seen(scene)) for scene in judge.pairs]
    reader = SimpleNamespace(read=lambda pixels: seen, heads={})
    monkeypatch.setattr(judge, "classifier", reader)
    pictures = [Image.new("RGB", (64, 64))] * len(seen)
    assert judge.measure_pairs(pictures) == {"pair": 1, "partner": 1}
    for scene in seen:  # the partner's color is wrong
        scene["color" if scene.get("color") == partner["color"] else "other_color"] = "none"
    found = judge.measure_pairs(pictures)
    parts = len(partner) - 1
    assert found == {"pair": 1, "partner": pytest.approx((parts - 1) / parts)}
    nothing: Any = None
    assert judge.draw_pairs(nothing) == []  # this classifier reads one thing only
    assert judge.measure_pairs([]) == {}


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_two_concepts_are_taught_and_drawn_in_every_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Judge("dotted_rabbit")
    monkeypatch.setattr(judge, "classifier", AttributeClassifier().eval())
    monkeypatch.setattr(concepts, "judge_of", lambda name: judge)
    picture, taught, drawn = Image.new("RGB", (64, 64), "white"), [], []

    def teach(run: Any, work: Path, options: Any, pictures: Path | None) -> Taught:  # noqa: ANN401
        taught.append((run.data, run.options.get("token", "sks"), work))
        return Taught(12)

    def load(pipeline: Any, work: Path, adapter_name: str) -> None:  # noqa: ANN401
        config = LoLDUConfig(r=1, init_weights=False, target_modules=["to_k"])
        pipeline.unet.add_adapter(config, adapter_name)

    def draw(pipeline: Any, prompts: list[str], first_seed: int) -> list[Image.Image]:  # noqa: ANN401
        layer, words = adapted_layers(pipeline)[0], routed_words(pipeline)
        gate = pipeline.routing.gate if words else None
        drawn.append((first_seed, words, gate, layer.active_adapters))
        return [picture] * len(prompts)

    monkeypatch.setattr(concepts, "teach", teach)
    monkeypatch.setattr(concepts, "_load", load)
    monkeypatch.setattr(judge_module, "_drawn", draw)
    monkeypatch.setattr(judge, "measure_concept", lambda *_: SCORES)
    experiment = read_experiment("pocket_two_things")
    run = next(experiment.runs(experiment.row("loldu"), "pocket", ["dotted_rabbit"]))
    scores = concepts.run(run, tmp_path).scores
    first = ("dotted_rabbit", "sks", tmp_path)
    assert taught == [first, ("beetle_car", "zwx", tmp_path / "partner")]
    ways = ["", *(f"{way}_" for way in run.options["ways"])]
    assert len(ways) == 6
    for way in ways:
        for name in ("beside", "neighbor", "pair", "partner"):
            assert 0 <= scores[way + name] <= 1
    pairs = [each[1:] for each in drawn if each[0] == 5000]
    both = ["default", "partner"]
    assert pairs[:3] == [
        ({}, None, both),
        ({"default": "sks", "partner": "zwx"}, 1.0, both),
        ({"default": "sks", "partner": "zwx"}, 0.0, both),
    ]
    assert pairs[4][0] == {"default": "sks toy", "partner": "zwx car"}


def test_masks_mark_the_thing(tmp_path: Path) -> None:
    look = CONCEPTS["dotted_rabbit"]
    for masks in (False, True):
        render_concept("dotted_rabbit", look, tmp_path / str(masks), masks=masks)
    for file in (tmp_path / "False").rglob("*.png"):
        same = tmp_path / "True" / file.relative_to(tmp_path / "False")
        assert file.read_bytes() == same.read_bytes()
    masks = sorted((tmp_path / "True").rglob("*-masklabel.png"))
    assert [mask.name for mask in masks] == [f"0{i}-masklabel.png" for i in range(1, 6)]
    for file in masks:
        mask = np.asarray(Image.open(file)) == 255
        picture = np.asarray(Image.open(file.with_name(file.name.replace("-masklabel", ""))))
        purple = np.abs(picture - np.array(COLORS["purple"])).sum(-1) < 40
        assert 0.05 < mask.mean() < 0.6
        assert purple.sum() > 100
        assert mask[purple].all()
