import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

from eval.protocols.drawing import file_digest
from loldu import Concept, ConceptError, load_concept
from loldu.base.config import BaseModelConfig
from loldu.base.open import load_pipeline, weights_digest
from loldu.errors import LoLDUError
from tests.webui.concepts import MakeUse, teach
from tests.webui.drawing.reference import PROMPT, TASK, assert_same, drawn_apart, pixels
from webui.drawing import model
from webui.drawing.queue import Cancelled
from webui.drawing.settings import Used
from webui.drawing.studio import Studio, Task, Watch


def test_base_and_concepts_are_drawn_as_a_fresh_pipeline_draws_them(
    studio: Studio, base_folder: Path, use: MakeUse, watch: Watch
) -> None:
    rabbit, house = use("rabbit"), use("house")
    drawn = {
        (): studio.draw_base(TASK, [rabbit], watch),
        (1.0,): studio.draw_concepts(TASK, [[rabbit]] * 2, watch),
        (0.5,): studio.draw_concepts(TASK, [[use("rabbit", 0.5)]] * 2, watch),
        (1.5, 0.4): studio.draw_concepts(
            TASK, [[use("rabbit", 1.5), use("house", 0.4)]] * 2, watch
        ),
    }
    paths = rabbit.entry.path, house.entry.path
    for strengths, row in drawn.items():
        assert_same(row, drawn_apart(base_folder, dict(zip(paths, strengths, strict=False))))
    assert len({str(pixels(row)) for row in drawn.values()}) == 4
    at_zero = studio.draw_concepts(TASK, [[use("rabbit", 0), use("house", 0)]] * 2, watch)
    assert pixels(at_zero) == pixels(drawn[()])


def test_a_prompt_without_the_word_stays_the_base_s_bit_for_bit(
    studio: Studio, base_folder: Path, use: MakeUse, watch: Watch
) -> None:
    prompts = (PROMPT, "a photo of a toy", "a sksy toy", "SKS, a toy")
    task = replace(TASK, prompts=prompts, seeds=(5, 5, 5, 5))
    base, rabbit = studio.draw_base(task, [], watch), use("rabbit")
    row = studio.draw_concepts(task, [[rabbit]] * 4, watch)
    same = [mine == its for mine, its in zip(pixels(row), pixels(base), strict=True)]
    assert same == [False, True, True, False]
    assert_same(row[:3], drawn_apart(base_folder, {rabbit.entry.path: 1.0}, task)[:3])


def test_concepts_with_one_word_act_together_or_one_in_each_picture(
    studio: Studio, base_folder: Path, tmp_path: Path, use: MakeUse, watch: Watch
) -> None:
    paths = [tmp_path / step / "concept.safetensors" for step in ("early", "late")]
    for seed, path in enumerate(paths):
        teach(base_folder, path, seed, None, token="sks")
    uses = [use(path.parent.name, 0.8, where=tmp_path) for path in paths]
    together = studio.draw_concepts(TASK, [uses] * 2, watch)
    assert_same(together, drawn_apart(base_folder, dict.fromkeys(paths, 0.8)))
    row = studio.draw_concepts(TASK, [[one] for one in uses], watch)
    for place, path in enumerate(paths):
        task = TASK.part(slice(place, None, 2))
        assert_same(row[place::2], drawn_apart(base_folder, {path: 0.8}, task))


def test_a_concept_in_each_picture(
    studio: Studio, base_folder: Path, use: MakeUse, watch: Watch, ticks: list[tuple[int, int]]
) -> None:
    uses = [use("rabbit", 0.7), use("house")]
    prompts, seeds = ("a sks toy", "a house") * 3, (1, 1, 2, 2, 3, 3)
    task = replace(TASK, prompts=prompts, seeds=seeds)
    row = studio.draw_concepts(task, [[one] for one in uses] * 3, watch)
    for place, one in enumerate(uses):
        mine = replace(task, prompts=prompts[place::2], seeds=seeds[place::2])
        alone = drawn_apart(base_folder, {one.entry.path: one.strength}, mine)
        assert_same(row[place::2], alone)
        assert {picture.settings.concepts[0].name for picture in row[place::2]} == {one.entry.name}
    assert ticks == [(done, 4) for done in range(1, 5)]  # a batch of three for each
    together = studio.draw_concepts(TASK, [uses] * 2, watch)
    assert_same(together, drawn_apart(base_folder, {one.entry.path: one.strength for one in uses}))


def test_strengths_and_steps_of_a_grid_are_drawn_in_one_pass(
    studio: Studio,
    base_folder: Path,
    tmp_path: Path,
    use: MakeUse,
    watch: Watch,
    ticks: list[tuple[int, int]],
) -> None:
    for seed, step in enumerate(("early", "late")):
        teach(base_folder, tmp_path / step / "concept.safetensors", seed, None, token="sks")
    cells = [(step, strength) for step in ("early", "late") for strength in (0.4, 1.3)]
    uses = [use(*cell, where=tmp_path) for cell in cells]
    task = replace(TASK, prompts=(PROMPT,) * 4, seeds=(5,) * 4)
    row = studio.draw_concepts(task, [[one, use("house", 0.5)] for one in uses], watch)
    assert ticks == [(1, 2), (2, 2)]
    house = {use("house").entry.path: 0.5}
    for picture, one in zip(row, uses, strict=True):
        alone = drawn_apart(
            base_folder, {one.entry.path: one.strength} | house, task.part(slice(1))
        )
        assert_same([picture], alone)
        assert [used.strength for used in picture.settings.concepts] == [one.strength, 0.5]
    assert len(set(pixels(row))) == 4


def test_pictures_hold_their_settings(
    studio: Studio, base_folder: Path, use: MakeUse, watch: Watch
) -> None:
    uses = [use("rabbit", 0.7), use("house")]
    digests = [file_digest(one.entry.path) for one in uses]
    settings = studio.draw_concepts(TASK, [uses] * 2, watch)[1].settings
    assert (settings.prompt, settings.negative_prompt, settings.seed) == (PROMPT, "dark", 6)
    assert settings.concepts == (
        Used("rabbit", digests[0], 0.7, "sks"),
        Used("house", digests[1], 1.0),
    )
    assert settings.base["fingerprint"] == weights_digest(load_pipeline(str(base_folder)))
    assert settings.base_name == base_folder.name
    assert (settings.width, settings.noise_scheduler) == (16, "DDIMScheduler")
    assert studio.draw_base(TASK, uses, watch)[0].settings.concepts == ()


def test_the_base_is_loaded_with_the_options_of_the_training(
    studio: Studio, base_folder: Path, runs: Path, tmp_path: Path, use: MakeUse, watch: Watch
) -> None:
    config = tmp_path / "epsilon" / "config.toml"
    shutil.copytree(runs / "house", config.parent)
    config.write_text(
        "[base]\npretrained_model_name_or_path = 'elsewhere'\nprediction_type = 'epsilon'\n"
    )
    epsilon = use("epsilon", where=tmp_path)
    row = studio.draw_base(TASK, [epsilon], watch)
    assert_same(row, drawn_apart(base_folder, prediction_type="epsilon"))
    assert pixels(row) != pixels(studio.draw_base(TASK, [], watch))
    with pytest.raises(LoLDUError, match=r"^rabbit and epsilon .*prediction_type None and eps"):
        studio.draw_concepts(TASK, [[use("rabbit"), epsilon]] * 2, watch)


def test_a_file_from_elsewhere_names_nothing_to_fetch(
    studio: Studio, base_folder: Path, tmp_path: Path, use: MakeUse, watch: Watch
) -> None:
    base_options = {"vae": "some/vae", "revision": "main", "prediction_type": "epsilon"}
    name = {"pretrained_model_name_or_path": str(base_folder)}
    for folder, base in (("sound", base_options | name), ("no", "text")):
        teach(base_folder, tmp_path / folder / "concept.safetensors", 0, None, base=base)
    row = studio.draw_base(TASK, [use("sound", where=tmp_path)], watch)
    assert_same(row, drawn_apart(base_folder, prediction_type="epsilon"))
    assert studio.draw_base(TASK, [use("no", where=tmp_path)], watch)


def test_the_base_is_loaded_once_its_weights_stay_and_concepts_used_last_too(
    studio: Studio,
    base_folder: Path,
    tmp_path: Path,
    use: MakeUse,
    watch: Watch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded: list[DiffusionPipeline] = []
    read: list[str] = []

    def load(base: BaseModelConfig, **options: Any) -> DiffusionPipeline:  # noqa: ANN401
        loaded.append(load_pipeline(base, **options))
        return loaded[-1]

    def put_on(pipeline: Any, path: Path, name: str, **options: Any) -> Concept:  # noqa: ANN401
        read.append(path.parent.name)
        return load_concept(pipeline, path, name, **options)

    monkeypatch.setattr(model, "load_pipeline", load)
    monkeypatch.setattr(model, "load_concept", put_on)
    monkeypatch.setattr(model, "MAX_LOADED", 2)
    short = replace(TASK, prompts=(PROMPT,), seeds=(1,), num_inference_steps=1)
    studio.draw_base(short, [], watch)
    (pipeline,) = loaded
    before = {name: value.clone() for name, value in pipeline.unet.state_dict().items()}
    for folder in ("third", "fourth"):
        teach(base_folder, tmp_path / folder / "concept.safetensors", 2, None)
    third = use("third", where=tmp_path)
    for one in (use("rabbit"), use("house", 0.3), use("rabbit"), third, use("rabbit"), third):
        studio.draw_concepts(short, [[one]], watch)
    assert read == ["rabbit", "house", "third"]
    assert len(pipeline.unet.peft_config) == 2
    studio.draw_concepts(short, [[use("house")]], watch)
    assert read[3:] == ["house"]
    assert len(loaded) == 1
    after = {
        name.replace(".base_layer.", "."): value
        for name, value in pipeline.unet.state_dict().items()
    }
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_every_pass_is_reported_and_the_base_is_not_drawn_twice(
    studio: Studio, use: MakeUse, watch: Watch, ticks: list[tuple[int, int]]
) -> None:
    many = Task((PROMPT,) * 5, tuple(range(5)), "", num_inference_steps=3, guidance_scale=3.0)
    first = studio.draw_base(many, [], watch)
    assert ticks == [(done, 6) for done in range(1, 7)]  # two batches, of four and of one
    studio.draw_concepts(many, [[use("rabbit")]] * 5, watch)
    assert len(ticks) == 12
    assert studio.draw_base(many, [use("rabbit")], watch) is first
    assert len(ticks) == 12
    studio.draw_base(TASK, [], watch)
    assert len(ticks) == 14


def test_stopping_ends_between_passes_and_frees_the_queue(
    studio: Studio, use: MakeUse, watch: Watch
) -> None:
    passes: list[int] = []

    def stop_at_the_second(done: int, _: int) -> None:
        passes.append(done)
        if done == 2:
            stopped.stop.set()

    stopped = Watch(stop_at_the_second, lambda _: None)
    long = replace(TASK, num_inference_steps=50)
    with pytest.raises(Cancelled):
        studio.draw_base(long, [], stopped)
    assert passes == [1, 2]
    with pytest.raises(Cancelled):
        studio.draw_concepts(long, [[use("rabbit")]] * 2, stopped)
    assert passes == [1, 2]
    assert len(studio.draw_concepts(TASK, [[use("rabbit")]] * 2, watch)) == 2


def test_a_retrained_concept_is_reloaded(
    studio: Studio, base_folder: Path, tmp_path: Path, use: MakeUse, watch: Watch
) -> None:
    toy = use("toy", where=tmp_path)
    teach(base_folder, toy.entry.path, 0, None)
    first = studio.draw_concepts(TASK, [[toy]] * 2, watch)
    toy.entry.path.unlink()
    teach(base_folder, toy.entry.path, 1, None)
    second = studio.draw_concepts(TASK, [[toy]] * 2, watch)
    assert_same(second, drawn_apart(base_folder, {toy.entry.path: 1.0}))
    assert pixels(second) != pixels(first)


def test_the_studio_works_after_mistakes(
    studio: Studio, base_folder: Path, tmp_path: Path, use: MakeUse, watch: Watch
) -> None:
    good = studio.draw_concepts(TASK, [[use("rabbit")]] * 2, watch)
    other = load_pipeline(str(base_folder))
    for weight in other.unet.parameters():
        weight.data.mul_(1.5)
    other.save_pretrained(tmp_path / "other")
    teach(tmp_path / "other", tmp_path / "foreign" / "concept.safetensors", 0, None)
    for one, match in (
        (use("foreign", where=tmp_path), "^foreign was made for another base"),
        (use("broken"), "^broken is not a readable"),
        (use("nowhere"), "^nowhere does not exist"),
    ):
        with pytest.raises(ConceptError, match=match):
            studio.draw_concepts(TASK, [[one]] * 2, watch)
    with pytest.raises(LoLDUError, match="does not exist"):
        Studio(str(tmp_path / "nothing")).draw_base(TASK, [], watch)
    assert pixels(studio.draw_concepts(TASK, [[use("rabbit")]] * 2, watch)) == pixels(good)
