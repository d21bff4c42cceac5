"""Scores of a run in progress, and the best step kept."""

import json
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from loldu import load_concept, read_concept
from loldu.base.draw import sample_images
from loldu.base.open import load_pipeline
from loldu.errors import LoLDUError
from tests.trainer.training.fake_scorer import FakeScorer
from trainer.__main__ import run
from trainer.options.config import Config
from trainer.options.preset import parse
from trainer.train_dreambooth_loldu import main
from trainer.training.scores import curves, read_scores
from trainer.training.scoring_plan import make_plan

MakeConfig = Callable[..., Config]
PROMPTS = ("--validation_prompt", "a photo of sks toy", "a car", "--token", "sks")
SCORED = (*PROMPTS, "--validation_steps", "1", "--validation_scores", "--validation_images", "2")
SCORED += ("--keep_best", "balance")


def trained_weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint-000004" / "trained.safetensors")


def test_scoring_does_not_change_a_run(
    flags: list[str], tmp_path: Path, clip_folder: Path, dino_folder: Path
) -> None:
    common = [*flags, "--checkpointing_steps", "2"]
    models = ["--clip", str(clip_folder), "--dino", str(dino_folder)]
    plain, scored = tmp_path / "plain", tmp_path / "scored"
    assert run([*common, "--output_dir", str(plain)]) == 0
    assert run([*common, *SCORED, *models, "--always_on", "--output_dir", str(scored)]) == 0
    ours, theirs = trained_weights(scored), trained_weights(plain)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    lines = read_scores(scored)
    assert [line["step"] for line in lines] == [0, 1, 2, 3, 4]
    assert lines[0]["drift"] == pytest.approx(0, abs=1e-6)
    assert lines[-1]["drift"] > 1e-6
    with Image.open(scored / "validation" / "scores.png") as picture:
        assert picture.width > 400
    best = json.loads((scored / "best" / "scores.json").read_text())
    sums = {
        line["step"]: (line["dino"] + line["clip_i"]) / 2 + line["clip_t"] - line["drift"]
        for line in lines[1:]
    }
    assert sums[best["step"]] == max(sums.values())
    assert best["value"] == pytest.approx(max(sums.values()), abs=1e-5)
    assert json.loads((scored / "summary.json").read_text())["best"] == best
    record = read_concept(scored / "concept.safetensors").metadata["scores"]
    assert record == {name: value for name, value in lines[-1].items() if name != "step"}


def test_optional_scores_are_left_out_without_their_models(
    make_config: MakeConfig,
    tmp_path: Path,
    clip_folder: Path,
    dino_folder: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    models = ["--clip", str(clip_folder), "--dino"]
    short = [*SCORED, "--max_train_steps", "2", "--checkpointing_steps", "1", *models]
    with pytest.raises(LoLDUError, match="has no usable weights"):
        main(make_config(*short, str(tmp_path / "gone")))
    main(make_config(*short, str(tmp_path / "gone"), "--scores_optional"))
    assert "Training without scores. --dino" in caplog.text
    folder = tmp_path / "run"
    options = tomllib.loads((folder / "config.toml").read_text())
    assert options["scores"]["validation_scores"] is False
    assert "keep_best" not in options["scores"]
    assert (folder / "concept.safetensors").is_file()
    assert not read_scores(folder)

    # With the models there, a resumed run is scored from then on.
    again = make_config(*short, str(dino_folder), "--scores_optional", "--resume", "latest")
    main(replace(again, optimization=replace(again.optimization, max_train_steps=3)))
    assert [line["step"] for line in read_scores(folder)] == [3]


def test_a_concept_that_its_word_calls_is_scored_as_its_file_draws(
    make_config: MakeConfig, tmp_path: Path, base_folder: Path
) -> None:
    scorer = FakeScorer(0.1, 0.2)
    config = make_config(*SCORED, "--max_train_steps", "1", "--learning_rate", "1")
    main(config, scorer)
    pipeline = load_pipeline(str(base_folder))
    load_concept(pipeline, tmp_path / "run" / "concept.safetensors")
    settings: dict[str, Any] = {"num_inference_steps": 2, "resolution": 16, "progress": False}
    first, last = scorer.shown
    for images, prompt, seeds in (
        (last.concept, "a photo of sks toy", (42, 44)),
        (last.others, "a car", (43, 45)),
    ):
        drawn = sample_images(pipeline, [prompt] * 2, seeds, **settings)
        assert [image.tobytes() for image in images] == [image.tobytes() for image in drawn]
    assert [image.tobytes() for image in last.others] == [image.tobytes() for image in last.base]
    assert [image.tobytes() for image in last.concept] != [x.tobytes() for x in first.concept]


def test_scoring_keeps_the_random_state_and_frees_the_device(
    clip_folder: Path, dino_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eval.encoders.encoder import Encoder
    from eval.protocols.live import LiveScorer, Pictures

    live = LiveScorer(str(clip_folder), str(dino_folder), "the device")
    moves: list[str] = []
    monkeypatch.setattr(Encoder, "to", lambda _, device: moves.append(device))
    one, other = (Image.new("RGB", (32, 32), colour) for colour in ("red", "blue"))
    state = torch.get_rng_state()
    scores = live.score(Pictures([one], [one, one], ["a", "b"], [other], [one]))
    assert torch.equal(torch.get_rng_state(), state)
    assert moves == ["the device", "the device", "cpu", "cpu"]
    assert scores["dino"] == pytest.approx(1)
    assert 1e-6 < scores["drift"] < 2


def test_pictures_of_the_sheet_are_not_drawn_again(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer, drawn = FakeScorer(0.1, 0.2, 0.3), []

    def counted(pipeline, prompts, seeds, **options):  # noqa: ANN001, ANN003, ANN202
        drawn.extend(zip(prompts, seeds, strict=True))
        return sample_images(pipeline, prompts, seeds, **options)

    monkeypatch.setattr("trainer.training.scores.sample_images", counted)
    main(make_config(*SCORED, "--max_train_steps", "2", "--always_on"), scorer)
    others = [pair for pair in drawn if pair[0] == "a car"]
    # The base's, then step 0 in full, and of steps 1 and 2 what the sheet does not show.
    assert len(drawn) == 2 + 4 + 2 + 2
    assert len(others) == 2 + 2 + 1 + 1
    pictures = tmp_path / "run" / "validation" / "pictures"
    for shown, name in zip(scorer.shown[1:], ("000001-00.png", "000002-00.png"), strict=True):
        with Image.open(pictures / name) as file:
            assert shown.concept[0].tobytes() == file.convert("RGB").tobytes()


def test_the_best_concept_is_that_of_its_step(make_config: MakeConfig, tmp_path: Path) -> None:
    fake = FakeScorer(0.9, 0.3, 0.6, 0.6, 0.5)  # step 0 is the base, and a draw is not better
    main(make_config(*SCORED, "--checkpointing_steps", "1", "--keep_best", "dino"), fake)
    folder = tmp_path / "run"
    best = read_concept(folder / "best" / "concept.safetensors")
    assert best.metadata["steps"] == 2
    assert best.metadata["scores"]["dino"] == 0.6
    again = tmp_path / "again"
    more = ["--max_train_steps", "2", "--output_dir", str(again)]
    main(make_config(*more))
    ours, theirs = best.layers, read_concept(again / "concept.safetensors").layers
    assert all(torch.equal(a.delta, b.delta) for a, b in zip(ours, theirs, strict=True))
    record = json.loads((folder / "summary.json").read_text())["best"]
    assert (record["step"], record["by"], record["value"]) == (2, "dino", 0.6)
    assert {path.name for path in (folder / ".loldu").iterdir()} == {"lock", "written.jsonl"}


def test_the_best_result_of_every_method_is_complete(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    word = ["--placeholder_token", "<toy>", "--initializer_token", "s"]
    word += ["--instance_prompt", "a <toy>", "--validation_prompt", "a <toy>"]
    for method, more, name in (
        ("dreambooth", [], "pipeline/model_index.json"),
        ("textual_inversion", word, "learned_embeds.safetensors"),
    ):
        own = ["--method", method, "--output_dir", str(tmp_path / method), "--max_train_steps", "1"]
        token = [flag for flag in SCORED if method != "textual_inversion" or flag != "--token"]
        token = [flag for flag in token if len(token) == len(SCORED) or flag != "sks"]
        main(make_config(*token, *own, *more), FakeScorer(0.1, 0.2))
        assert (tmp_path / method / "best" / name).is_file()


def test_a_resumed_run_continues_its_scores_and_keeps_the_best(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    options = [*SCORED, "--checkpointing_steps", "2", "--keep_best", "dino"]
    main(make_config(*options), FakeScorer(0.1, 0.2, 0.3, 0.4, 0.5))
    folder = tmp_path / "run"
    before = (folder / "best" / "concept.safetensors").read_bytes()
    checkpoint = ["--resume", str(folder / "checkpoint-000002")]
    fake = FakeScorer(0.35, 0.45)
    main(make_config(*options, *checkpoint), fake)
    assert [line["dino"] for line in read_scores(folder)] == [0.1, 0.2, 0.3, 0.35, 0.45]
    assert (folder / "later-best" / "concept.safetensors").read_bytes() == before
    best = read_concept(folder / "best" / "concept.safetensors").metadata
    assert (best["steps"], best["scores"]["dino"]) == (4, 0.45)
    assert len(fake.shown[0].base) == len(fake.shown[0].others) == 2
    with pytest.raises(LoLDUError, match="--validation_images is 3 but was 2"):
        main(make_config(*options, *checkpoint, "--validation_images", "3"), fake)
    with pytest.raises(LoLDUError, match="--validation_prompt is"):
        main(make_config(*options, *checkpoint, "--validation_prompt", "sks"), fake)
    main(make_config(*options, *checkpoint, "--no_validation_scores", "--keep_best", "None"))


def test_drift_is_from_the_base_even_when_the_base_is_overwritten(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    more = ["--method", "dreambooth", "--max_train_steps", "2", "--checkpointing_steps", "1"]
    first, resumed = FakeScorer(0.0, 0.0, 0.0), FakeScorer(0.0)
    main(make_config(*SCORED, *more), first)
    checkpoint = str(tmp_path / "run" / "checkpoint-000001")
    main(make_config(*SCORED, *more, "--resume", checkpoint), resumed)

    def pixels(images: Any) -> list[bytes]:  # noqa: ANN401
        return [image.tobytes() for image in images]

    assert pixels(first.shown[0].others) == pixels(first.shown[0].base)
    assert pixels(resumed.shown[0].base) == pixels(first.shown[0].base)
    assert pixels(resumed.shown[0].others) == pixels(first.shown[2].others)
    assert pixels(resumed.shown[0].others) != pixels(first.shown[0].others)


def test_prompts_are_distinct_and_every_picture_has_its_own_noise(make_config: MakeConfig) -> None:
    plan = make_plan(make_config(*SCORED))
    assert plan.concept == [("a photo of sks toy", 42), ("a photo of sks toy", 44)]
    assert plan.prompts == ["a photo of toy"] * 2
    assert plan.others == [("a car", 43), ("a car", 45)]
    plan = make_plan(make_config(*SCORED, "--validation_prompt", "sks"))
    assert plan.others == [("a photo of toy", 42), ("a photo of toy", 43)]
    plan = make_plan(make_config(*SCORED, "--drift_prompt", "a", "b"))
    assert plan.others == [("a", 42), ("b", 43), ("a", 44), ("b", 45)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--validation_steps", "0"], "--validation_scores needs --validation_steps"),
        (["--no_validation_scores"], "--keep_best needs --validation_scores"),
        (["--token", "zwx"], "--token is zwx, which is not in the --instance_prompt"),
        (["--validation_prompt", "a car"], "a --validation_prompt with the token sks"),
        (["--drift_prompt", "a sks car"], '--drift_prompt "a sks car" has the token sks'),
        (
            ["--token", "None"],
            "cannot derive the rare token from the prompts; give it with --token",
        ),
        (["--dino", "./nowhere"], "--dino ./nowhere has no usable weights"),
    ],
)
def test_a_mistake_gives_one_clear_error(
    more: list[str], message: str, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*flags, *SCORED, *more]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_without_eval_the_error_says_what_to_install(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "eval.encoders.from_timm", None)
    with pytest.raises(LoLDUError, match=r"needs the package .*: pip install 'loldu\[eval\]'"):
        main(make_config(*SCORED))


def test_the_picture_shows_one_step_as_well_as_many() -> None:
    lines = [{"step": step, "dino": 0.1 * step, "drift": 0.0} for step in range(4)]
    one, many = curves(lines[:1], "dino"), curves(lines, "dino")
    assert one.size == many.size
    assert one.tobytes() != many.tobytes()
    assert many.tobytes() != curves(lines, None).tobytes()


def test_every_concept_has_scores_and_a_best_of_its_own(
    flags: list[str], pictures: Path, tmp_path: Path
) -> None:
    toml = tmp_path / "concepts.toml"
    table = "[{0}]\ninstance_data_dir = '{1}'\ninstance_prompt = '{0} toy'\ntoken = '{0}'\n"
    table += "validation_prompt = ['{0} toy', 'toy']\ndrift_prompt = ['a {0}x']\n"
    toml.write_text("".join(table.format(name, pictures) for name in ("sks", "zwx")))
    at = flags.index("--instance_data_dir")
    scored = [flag for flag in SCORED if flag not in (*PROMPTS,)]
    fake = FakeScorer(0.0, 0.0, 0.1, 0.4, 0.2, 0.3)
    argv = [*flags[:at], *flags[at + 4 :], *scored, "--concepts", str(toml)]
    main(parse([*argv, "--max_train_steps", "2", "--keep_best", "dino"]), fake)
    for name, step in (("sks", 2), ("zwx", 1)):
        folder = tmp_path / "run" / "concepts" / name
        assert [line["step"] for line in read_scores(folder)] == [0, 1, 2]
        best = read_concept(folder / "best" / "concept.safetensors").metadata
        assert (best["steps"], best["instance_prompt"]) == (step, f"{name} toy")
        assert json.loads((folder / "summary.json").read_text())["best"]["step"] == step
