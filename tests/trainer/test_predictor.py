"""Training a predictor: subjects, the pass with a concept for every row, resume, and a start."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.func import functional_call

from loldu import LoLDUConfig, load_concept, predict_concept, read_concept
from loldu.adapter.components import layers_with
from loldu.base.open import load_pipeline
from loldu.errors import LoLDUError
from loldu.predict.predictor import Predictor, read_predictor
from trainer.methods.loldu import start_from_concepts
from trainer.methods.method import add_trainables, save_result
from trainer.options.config import Config
from trainer.predictor import __main__ as command
from trainer.predictor.fit import lr_factor, new_predictor
from trainer.predictor.objective import NAME, PredictorObjective
from trainer.predictor.options import DataConfig, FittingConfig
from trainer.predictor.subjects import Subjects, encode_subjects, find_subjects
from trainer.training.instances import find_all_instances
from trainer.training.objective import Denoiser

MakeConfig = Callable[..., Config]
SHAPE = 3, 3  # subjects, pictures of each


def draw_picture(path: Path, color: list[int], rng: np.random.Generator) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = rng.integers(0, 60, (24, 20, 3), dtype=np.uint8)
    Image.fromarray(noise + np.array(color, np.uint8)).save(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three things, each in three pictures, and a hidden folder."""
    root, rng = tmp_path_factory.mktemp("subjects"), np.random.default_rng(0)
    for name, color in {"a": [150, 20, 20], "b": [20, 150, 20], "c": [20, 20, 150]}.items():
        for index in range(3):
            draw_picture(root / name / f"{index}.png", color, rng)
    (root / ".cache").mkdir()
    return root


@pytest.fixture
def typed(folder: Path, base_folder: Path, tmp_path: Path) -> list[str]:
    return [
        *("--subjects", str(folder), "--prompt", "a photo of a {token} toy"),
        *("--pretrained_model_name_or_path", str(base_folder), "--resolution", "16"),
        *("--output_dir", str(tmp_path / "run"), "--picture_px", "16", "--embedding", "8"),
        *("--max_train_steps", "4", "--train_batch_size", "4", "--lr_warmup_steps", "1"),
        *("--held_out_subjects", "1", "--checkpointing_steps", "2", "--logging_steps", "1"),
    ]


Prepared = tuple[Any, Predictor, PredictorObjective, Subjects]


@pytest.fixture
def prepared(typed: list[str]) -> Prepared:
    """Pipeline, predictor with random predictions, objective and subjects."""
    config = command.parse(typed)
    pipeline = load_pipeline(config.base)
    predictor = new_predictor(config, pipeline)
    torch.nn.init.normal_(predictor.reader.out.weight, std=0.3)
    found = find_subjects(config.data)
    subjects = encode_subjects(pipeline, found, config.data, predictor.reader.config)
    return (
        pipeline,
        predictor,
        PredictorObjective(pipeline, predictor.frame, subjects, config),
        (subjects),
    )


def test_every_row_of_a_pass_has_the_concept_that_was_predicted_for_it(prepared: Prepared) -> None:
    pipeline, predictor, objective, subjects = prepared
    draw = objective.draw(0)
    with torch.no_grad():
        numbers = predictor.reader(objective._pixels(draw.read)).numbers
        found = objective._errors(numbers.repeat_interleave(2, 0), draw)
    # The reference: one row at a time, with the numbers as the offsets of an ordinary adapter.
    schedule, cache = objective._schedule, subjects.cache
    layers = layers_with(pipeline.unet, NAME)
    for row in range(4):
        sizes = [layer.r[NAME] for layer in layers.values()]
        for layer, part in zip(layers.values(), numbers[row // 2].split(sizes), strict=True):
            layer.diagonal(NAME).dz.data.copy_(part)
        view = draw.denoised[row : row + 1]
        latents = cache.mean[view] + cache.std[view] * draw.posterior_noise[row]
        noisy, target = schedule.noise_and_target(
            latents, draw.noise[row : row + 1], draw.timesteps[row : row + 1]
        )
        states = cache.conditioning_of(cache.prompt_of_view[view], view)
        with torch.no_grad():
            answer = Denoiser(pipeline)(noisy, draw.timesteps[row : row + 1], states)
        torch.testing.assert_close(found[row], (answer - target).square().mean(), rtol=1e-4, atol=0)
        wanted = sum(layer.get_delta_weight(NAME).square().sum() for layer in layers.values())
        squared = objective.squared_norms(numbers[row // 2 : row // 2 + 1])[0]
        torch.testing.assert_close(squared, wanted, rtol=1e-4, atol=0)
    assert len({round(float(error), 6) for error in found}) == 4


def test_the_loss_reaches_every_weight_of_the_network(prepared: Prepared) -> None:
    _, predictor, objective, _ = prepared
    objective.losses(predictor.reader.train(), objective.draw(0)).total.backward()
    missing = [n for n, p in predictor.reader.named_parameters() if p.grad is None]
    assert not missing
    assert all(p.grad.abs().sum() > 0 for p in predictor.reader.out.parameters())


def test_a_base_in_half_precision_teaches_the_network_too(typed: list[str]) -> None:
    config = command.parse([*typed, "--mixed_precision", "bf16"])
    pipeline = load_pipeline(config.base, torch_dtype=torch.bfloat16)
    predictor = new_predictor(config, pipeline)
    found = find_subjects(config.data)
    subjects = encode_subjects(pipeline, found, config.data, predictor.reader.config)
    objective = PredictorObjective(pipeline, predictor.frame, subjects, config)
    objective.losses(predictor.reader, objective.draw(0)).total.backward()
    gradient = predictor.reader.out.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.any()


def test_a_picture_that_is_read_is_never_denoised(prepared: Prepared) -> None:
    objective = prepared[2]
    numbers = set()
    for step in range(40):
        draw = objective.draw(step)
        numbers.add(draw.read.shape[1])
        for read, denoised in zip(draw.read, draw.denoised.view(2, 2).numpy(), strict=True):
            assert not {*read} & {*denoised}
            assert len({*read}) == len(read)
            assert len({picture // 3 for picture in (*read, *denoised)}) == 1
            assert max(read) < 6  # the third subject is held out
    assert numbers == {1, 2}
    again = objective.draw(7)
    assert torch.equal(again.noise, objective.draw(7).noise)
    assert not torch.equal(again.noise, objective.draw(8).noise)
    assert again.timesteps.min() >= 100


def test_a_predictor_is_trained_and_resumes_exactly(
    typed: list[str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--spread_weight", "1e-3", "--delta_norm_penalty", "1e-4"]
    assert command.run([*typed, *more]) == 0
    whole = tmp_path / "run"
    with monkeypatch.context() as patched:
        draw = PredictorObjective.draw

        def stops(self: PredictorObjective, step: int, stream: int = 1) -> Any:  # noqa: ANN401
            if (step, stream) == (3, 1):
                raise KeyboardInterrupt
            return draw(self, step, stream)

        patched.setattr(PredictorObjective, "draw", stops)
        other = [*typed, *more, "--output_dir", str(tmp_path / "other")]
        assert command.run(other) == 130
    assert command.run([*other, "--resume", "latest"]) == 0
    files = [tmp_path / name / "predictor.safetensors" for name in ("run", "other")]
    assert files[0].read_bytes() == files[1].read_bytes()
    lines = [
        [json.loads(line) | {"seconds": 0} for line in path.read_text().splitlines()]
        for path in (whole / "metrics.jsonl", tmp_path / "other" / "metrics.jsonl")
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [1, 2, 3, 4]
    assert len({lines[0][-1][f"{name}_loss"] for name in ("held_out", "other", "base")}) == 3
    about = read_predictor(files[0]).frame.metadata
    assert (about["subjects"], about["pictures"], about["steps"]) == (*SHAPE[:1], 9, 4)
    pipeline = load_pipeline(typed[typed.index("--pretrained_model_name_or_path") + 1])
    pictures = sorted((folder / "c").glob("*.png"))
    predict_concept(pipeline, pictures, files[0], tmp_path / "toy.safetensors")
    load_concept(pipeline, tmp_path / "toy.safetensors")
    assert pipeline.routing.words == {"default": "sks"}


def test_the_learning_rate_rises_holds_and_falls() -> None:
    fitting = FittingConfig(max_train_steps=100, lr_hold=0.5, lr_warmup_steps=10)
    found = [lr_factor(fitting, step) for step in (0, 9, 50, 75, 99)]
    assert found == pytest.approx([0.1, 1, 1, 0.5, 0.02])


def test_another_training_is_neither_replaced_nor_continued(
    typed: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = [*typed, "--max_train_steps", "1"]
    assert command.run(short) == 0
    for more, words in (
        ([], "holds a checkpoint.pt; continue it with --resume latest"),
        (["--resume", "latest", "--seed", "5"], "--seed has changed since"),
        (["--resume", "latest", "--prompt", "one {token} toy"], "A picture or prompt has changed"),
    ):
        assert command.run([*short, *more]) == 2
        assert words in capsys.readouterr().err
    (tmp_path / "run" / "checkpoint.pt").write_bytes(b"PK")
    assert command.run([*short, "--resume", "latest"]) == 2
    assert "checkpoint.pt is damaged" in capsys.readouterr().err


def test_subjects_that_cannot_be_used_are_named(folder: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for name in ("x/0", "y/0", "y/1", "z/0", "z/1"):
        draw_picture(tmp_path / f"{name}.png", [9, 9, 9], rng)
    (tmp_path / "z/0.txt").write_text("a photo of a toy")
    with pytest.raises(LoLDUError) as caught:
        find_subjects(DataConfig(tmp_path, prompt="a {token} toy", resolution=16))
    first, second = str(caught.value).splitlines()
    assert "x has a single picture; give at least two" in first
    assert "0.png lacks the --token sks: a photo of a toy" in second
    with pytest.raises(LoLDUError, match=r"a/0\.png has no caption: give --prompt without"):
        find_subjects(DataConfig(folder, resolution=16))
    with pytest.raises(LoLDUError, match="--subjects is missing"):
        find_subjects(DataConfig())
    with pytest.raises(LoLDUError, match="has no folders"):
        find_subjects(DataConfig(folder / "a"))


def test_benchmarks_give_the_class_names(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "dataset").symlink_to(folder)
    rows = [
        {
            "instance_prompt": f"photo of a <new1> {thing}",
            "class_prompt": thing,
            "instance_data_dir": f"dataset/{name}",
            "prompt_filename": "prompts.txt",
        }
        for name, thing in (("a", "toy"), ("b", "cup"))
    ]
    (tmp_path / "prompts.txt").write_text("{} in the snow\n")
    (tmp_path / "dataset.json").write_text(json.dumps(rows))
    found = find_subjects(DataConfig(tmp_path, token="zwx", resolution=16))
    assert [{picture.caption for picture in own} for own in found] == [
        {"a photo of a zwx toy"},
        {"a photo of a zwx cup"},
    ]


@pytest.fixture
def predictor(typed: list[str], tmp_path: Path) -> Path:
    assert command.run([*typed, "--max_train_steps", "2", "--learning_rate", "0.1"]) == 0
    return tmp_path / "run" / "predictor.safetensors"


def test_a_run_starts_from_what_a_predictor_reads(
    predictor: Path, base_folder: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config("--rank", "full", "--init_predictor", str(predictor))
    instances = find_all_instances({"default": config})
    pictures = [picture.path for picture in instances["default"]]
    predict_concept(
        load_pipeline(str(base_folder)), pictures, predictor, tmp_path / "predicted.safetensors"
    )
    pipeline = load_pipeline(str(base_folder))
    trained = add_trainables(pipeline, {"default": config}, {})
    start_from_concepts(pipeline, {"default": config}, instances)
    (tmp_path / "start").mkdir()
    save_result(pipeline, trained, "default", config, {}, tmp_path / "start")
    start = read_concept(tmp_path / "start" / "concept.safetensors")
    wanted = read_concept(tmp_path / "predicted.safetensors")
    for ours, theirs in zip(start.layers, wanted.layers, strict=True):
        assert torch.equal(ours.delta, theirs.delta)
        assert theirs.delta.abs().max() > 0


def test_a_predictor_that_does_not_fit_a_run_is_refused(
    predictor: Path, base_folder: Path, make_config: MakeConfig, xl_folder: Path
) -> None:
    config = make_config("--rank", "2", "--init_predictor", str(predictor))
    instances = find_all_instances({"default": config})
    pipeline = load_pipeline(str(base_folder))
    add_trainables(pipeline, {"default": config}, {})
    with pytest.raises(
        LoLDUError, match=rf"^--init_predictor {predictor} has .* there are 2: start"
    ):
        start_from_concepts(pipeline, {"default": config}, instances)
    other = load_pipeline(str(xl_folder))
    with pytest.raises(LoLDUError, match=r"--init_predictor .* was made for another base"):
        start_from_concepts(other, {"default": config}, instances)
    with pytest.raises(LoLDUError, match="are two starts"):
        make_config("--init_concept", str(predictor), "--init_predictor", str(predictor))


def test_rows_of_offsets_need_no_change_of_the_adapter(base_folder: Path) -> None:
    """A row's offsets through `functional_call` give what `set_concepts` gives."""
    pipeline = load_pipeline(str(base_folder))
    pipeline.unet.add_adapter(LoLDUConfig(r=4, train_scale=False), "a")
    name, layer = next(iter(layers_with(pipeline.unet, "a").items()))
    x = torch.randn(2, 3, layer.in_features)
    rows = torch.randn(2, 4)
    found = functional_call(layer, {"loldu_diagonal.a.dz": rows}, (x,))
    for row in range(2):
        layer.diagonal("a").dz.data.copy_(rows[row])
        torch.testing.assert_close(found[row], layer(x)[row], rtol=1e-4, atol=1e-5), name
