"""The files of a finished run: metadata, LoRA, samples, and files that it must not touch."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from loldu import Concept, ConceptLayer, load_concept, read_concept
from loldu.base.open import load_pipeline
from loldu.base.stable_diffusion import embed
from loldu.concept.format import write_concept
from trainer.__main__ import run
from trainer.methods.method import add_trainables
from trainer.options.config import Config, Method
from trainer.options.preset import parse
from trainer.results import result
from trainer.results.metadata import Training, describe, license_of, name_of, public_sections
from trainer.results.result import write_result
from trainer.training.checkpoint import Progress

CLASS = ["--class_prompt", "a photo of a toy"]
FAST = ["--max_train_steps", "1", "--no_sample_at_end"]
TRAINING = Training(Progress(4, 1.5), 68, "a photo of sks toy", 3, 0)
LORA = "pytorch_lora_weights.safetensors"


@pytest.fixture
def output_dir(tmp_path: Path) -> Path:
    return tmp_path / "run"


def header(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("method", "lora_file", "tolerance"),
    [("loldu", "fp32", 1e-5), ("loldu", "fp16", 5e-3), ("svfit", "fp32", 1e-5)],
)
def test_the_lora_draws_what_the_concept_draws(
    method: str,
    lora_file: str,
    tolerance: float,
    flags: list[str],
    output_dir: Path,
    predict: Callable[[StableDiffusionPipeline], torch.Tensor],
) -> None:
    more = ["--learning_rate", "0.3", "--method", method, "--lora_file", lora_file]
    more += ["--train_text_encoder"]
    assert run([*flags, *more, "--no_sample_at_end"]) == 0
    base = parse(flags).base.pretrained_model_name_or_path
    alone, with_concept, with_lora = (load_pipeline(base) for _ in range(3))
    load_concept(with_concept, output_dir / "concept.safetensors")
    with_lora.load_lora_weights(str(output_dir))  # finds its file beside the concept's
    change = (predict(with_concept) - predict(alone)).norm()
    assert change > 0.1
    assert (predict(with_lora) - predict(with_concept)).norm() < tolerance * change
    prompts = ["sks", "a toy"]
    texts = [embed(each, prompts) for each in (alone, with_concept, with_lora)]
    text_change = (texts[1] - texts[0]).norm()
    assert text_change > 0.1
    assert (texts[2] - texts[1]).norm() < tolerance * text_change
    floats = {t.dtype for name, t in load_file(output_dir / LORA).items() if ".lora_" in name}
    assert floats == {torch.float16 if lora_file == "fp16" else torch.float32}


@pytest.mark.parametrize("method", ["loldu", "lora"])
def test_the_lora_has_the_names_that_a1111_and_comfyui_look_for(
    method: str, flags: list[str], output_dir: Path, pipeline: StableDiffusionPipeline
) -> None:
    more = ["--method", method, "--license", "openrail", "--train_text_encoder"]
    assert run([*flags, *FAST, *CLASS, *more]) == 0
    layers = [
        f"lora_unet_{name.replace('.', '_')}"
        for name, _ in pipeline.unet.named_modules()
        if name.endswith((".to_q", ".to_k", ".to_v", ".to_out.0"))
    ]
    attention = "lora_te_text_model_encoder_layers_0_self_attn_"
    layers += [f"{attention}{name}" for name in ("q_proj", "k_proj", "v_proj", "out_proj")]
    ends = ("alpha", "lora_down.weight", "lora_up.weight")
    expected = {f"{layer}.{end}" for layer in layers for end in ends}
    assert set(load_file(output_dir / LORA)) == expected
    recorded = header(output_dir / LORA)
    assert recorded["modelspec.trigger_phrase"] == "sks toy"
    assert recorded["modelspec.license"] == "openrail"
    assert recorded["modelspec.prediction_type"] == "v"
    assert "modelspec.architecture" not in recorded  # it is as narrow as no Stable Diffusion
    assert json.loads(recorded["training"])["steps"] == 1


def test_the_lora_may_be_left_out(flags: list[str], output_dir: Path) -> None:
    assert run([*flags, *FAST, "--lora_file", "no"]) == 0
    assert not (output_dir / LORA).exists()
    assert LORA not in (output_dir / "README.md").read_text()
    assert "\n- lora\n" not in (output_dir / "README.md").read_text()


def test_a_failed_lora_export_keeps_the_concept(
    make_config: Callable[..., Config],
    pipeline: StableDiffusionPipeline,
    output_dir: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = make_config("--no_sample_at_end")
    output_dir.mkdir()
    trained = add_trainables(pipeline, {"default": config}, {})
    for parameter in trained.parameters():
        parameter.data.fill_(1e9)  # beyond half precision
    cpu = torch.device("cpu")
    files = write_result(config, "default", pipeline, trained, TRAINING, cpu, None)
    assert files == ["README.md", "concept.safetensors"]
    assert "There is no LoRA of the concept: layer" in caplog.text
    assert not (output_dir / LORA).exists()
    assert (output_dir / "concept.safetensors").exists()
    assert "```python" in (output_dir / "README.md").read_text()


def test_metadata_hold_all_that_decides_a_concept(
    make_config: Callable[..., Config], pipeline: StableDiffusionPipeline, base_folder: Path
) -> None:
    config = make_config(*CLASS, "--license", "openrail", "--validation_prompt", "sks")
    recorded = describe(config, replace(TRAINING, scores={"dino": 0.5}), pipeline)
    assert set(recorded.pop("versions")) == {"loldu", "torch", "diffusers", "transformers", "peft"}
    assert recorded == {
        "method": "loldu",
        "token": "sks",
        "class_name": "toy",
        "instance_prompt": "a photo of sks toy",
        "class_prompt": ["a photo of a toy"],
        "base": {
            "pretrained_model_name_or_path": base_folder.name,
            "clip_skip": 0,
            "prompt_chunks": 1,
            "family": "Stable Diffusion 1.x and 2.x",
        },
        "license": "openrail",
        "pictures": 3,
        "class_pictures": 0,
        "steps": 4,
        "scores": {"dino": 0.5},
        "instance": {
            "resolution": 16,
            "aspect_buckets": False,
            "center_crop": True,
            "random_flip": False,
            "unmasked_weight": 0.1,
            "unmasked_target": "images",
        },
        "prior": {
            "with_prior_preservation": False,
            "num_class_images": 100,
            "prior_loss_weight": 1.0,
            "prior_target": "images",
            "class_pictures": "drawn",
        },
        "captions": public_sections(config)["captions"],
        "adapter": public_sections(config)["adapter"],
        "optimization": public_sections(config)["optimization"],
    }
    assert recorded["adapter"]["rank"] == 4
    assert recorded["optimization"]["learning_rate"] == 1e-2


def test_unknown_metadata_are_left_out(
    make_config: Callable[..., Config], pipeline: StableDiffusionPipeline
) -> None:
    recorded = describe(make_config(), TRAINING, pipeline)
    assert not recorded.keys() & {"token", "class_name", "license", "scores"}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--token", "sks"], ("sks", "toy")),
        (["--token", "photo of sks"], ("photo of sks", "toy")),
        (["--instance_prompt", "a sks", "--token", "sks"], ("sks", None)),
        (
            [
                *("--instance_prompt", "a <x> toy", "--placeholder_token", "<x>"),
                *("--initializer_token", "toy"),
            ],
            ("<x>", "toy"),
        ),
    ],
)
def test_the_class_follows_a_given_token(
    more: list[str], expected: tuple[str, str | None], make_config: Callable[..., Config]
) -> None:
    assert name_of(make_config(*more)) == expected


def test_metadata_hold_the_commit_of_the_base(
    make_config: Callable[..., Config], base_folder: Path, tmp_path: Path
) -> None:
    """The hub's cache names a folder by the commit, whatever branch was asked for."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    cached = tmp_path / "models--somebody--tiny" / "snapshots" / commit
    cached.parent.mkdir(parents=True)
    cached.symlink_to(base_folder)
    config = make_config("--revision", "main")
    recorded = [
        describe(config, TRAINING, load_pipeline(str(f)))["base"] for f in (cached, base_folder)
    ]
    assert [base["revision"] for base in recorded] == [commit, "main"]


@pytest.mark.parametrize(
    ("base", "given", "expected"),
    [
        ("stable-diffusion-v1-5/stable-diffusion-v1-5", None, "creativeml-openrail-m"),
        ("stabilityai/stable-diffusion-2-1", None, "openrail++"),
        ("stabilityai/stable-diffusion-2-1", "other", "other"),
        ("somebody/something", None, None),
    ],
)
def test_the_licence_is_the_base_s_where_it_is_known(
    base: str, given: str | None, expected: str | None, make_config: Callable[..., Config]
) -> None:
    license_flags = ["--license", given] if given else []
    config = make_config("--pretrained_model_name_or_path", base, *license_flags)
    assert license_of(config) == expected


def test_published_files_hold_no_local_paths(
    flags: list[str], output_dir: Path, base_folder: Path, tmp_path: Path
) -> None:
    mine = tmp_path / "class_folder"
    assert run([*flags, *FAST, *CLASS, "--class_data_dir", str(mine)]) == 0
    places = [str(tmp_path), str(base_folder.parent)]
    for name in ("concept.safetensors", LORA, "README.md", "metrics.jsonl"):
        content = (output_dir / name).read_bytes()
        assert not any(place.encode() in content for place in places), name
    public = json.dumps(public_sections(parse([*flags, "--class_data_dir", str(mine)])))
    assert not any(place in public for place in places)


def test_the_same_run_gives_the_same_bytes(flags: list[str], tmp_path: Path) -> None:
    files = ["concept.safetensors", LORA]
    for name in "ab":
        assert run([*flags, *FAST, "--output_dir", str(tmp_path / name)]) == 0
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_size_for_stable_diffusion_with_the_paper_s_settings(
    pipeline: StableDiffusionPipeline, tmp_path: Path
) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280, 1280),
            cross_attention_dim=768,
            attention_head_dim=8,
        )
    names = ("to_q", "to_k", "to_v", "to_out.0")
    linears = [(name, m) for name, m in unet.named_modules() if name.endswith(names)]
    torch.manual_seed(0)
    layers = tuple(
        ConceptLayer(
            component="unet",
            name=name,
            out_features=linear.out_features,
            in_features=linear.in_features,
            factorization="partial",
            base_dtype="float16",
            delta=torch.randn(32),
            pivots=torch.randperm(linear.out_features)[:32],
            fingerprint=torch.randn(3),
        )
        for name, linear in linears
    )
    assert len(layers) == 128
    config = parse(
        [
            *("--preset", "paper", "--instance_data_dir", "pictures", "--output_dir", "run"),
            *("--instance_prompt", "a photo of a sks teddy bear", "--with_prior_preservation"),
            *("--class_prompt", "a photo of a teddy bear", "a photo of a dog", "a photo of a cat"),
        ]
    )
    scores = {"dino": 0.668, "clip_i": 0.803, "clip_t": 0.305, "drift": 0.021}
    training = Training(Progress(1000, 300.0), 4224, "", 5, 100, scores)
    metadata = describe(config, training, pipeline)
    adapter = {"r": 32, "alpha": 32.0, "target_modules": list(names), "seed": 42}
    base = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    concept = Concept(base, {"unet": adapter}, layers, metadata)
    write_concept(concept, tmp_path / "toy.safetensors")
    assert (tmp_path / "toy.safetensors").stat().st_size < 40_000


@pytest.mark.parametrize("method", ["loldu", "lora"])
def test_samples_show_the_base_and_the_concept(
    method: Method, flags: list[str], output_dir: Path, base_folder: Path
) -> None:
    prompts = ["sks", "a toy"]
    more = ["--validation_prompt", *prompts, "--method", method, "--learning_rate", "1"]
    assert run([*flags, *more]) == 0
    for name, pipeline in (
        ("base", load_pipeline(str(base_folder))),
        ("concept", load_pipeline(str(base_folder))),
    ):
        if name == "concept" and method == "lora":
            pipeline.load_lora_weights(str(output_dir))
        elif name == "concept":
            load_concept(pipeline, output_dir / "concept.safetensors")
        for index, prompt in enumerate(prompts):
            drawn = pipeline(
                prompt,
                num_inference_steps=2,
                generator=torch.Generator().manual_seed(42 + index),
            ).images[0]
            with Image.open(output_dir / "samples" / f"{index}-{name}.png") as sample:
                assert largest_difference(sample, drawn) <= 1
    base, adapted = (Image.open(output_dir / f"samples/0-{n}.png") for n in ("base", "concept"))
    assert largest_difference(base, adapted) > 5


@pytest.mark.parametrize("method", ["dreambooth", "textual_inversion"])
def test_methods_that_change_the_base_draw_no_sample_of_it(
    method: Method, flags: list[str], output_dir: Path
) -> None:
    word = ["--placeholder_token", "<x>", "--initializer_token", "s", "--instance_prompt", "a <x>"]
    more = word if method == "textual_inversion" else []
    assert run([*flags, "--max_train_steps", "1", "--method", method, *more]) == 0
    assert [path.name for path in (output_dir / "samples").iterdir()] == ["0-concept.png"]
    assert "| base | !" not in (output_dir / "README.md").read_text()


def largest_difference(one: Image.Image, other: Image.Image) -> int:
    pair = [torch.tensor(list(image.tobytes()), dtype=torch.int) for image in (one, other)]
    return int((pair[0] - pair[1]).abs().max())


def test_a_run_without_memory_for_samples_still_has_a_result(
    flags: list[str],
    output_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(result, "sample_images", fail)
    assert run([*flags, "--max_train_steps", "1"]) == 0
    assert "Not enough memory to draw samples" in caplog.text
    assert read_concept(output_dir / "concept.safetensors").metadata["steps"] == 1
    assert "samples/" not in (output_dir / "README.md").read_text()


def test_overwriting_removes_only_the_earlier_result(flags: list[str], output_dir: Path) -> None:
    more = ["--max_train_steps", "1", "--validation_prompt", "sks", "a toy"]
    assert run([*flags, *more]) == 0
    (output_dir / "samples" / "mine.png").write_bytes(b"a person's own")
    assert run([*flags, *FAST, "--overwrite", "--lora_file", "no"]) == 0
    assert [path.name for path in (output_dir / "samples").iterdir()] == ["mine.png"]
    assert not (output_dir / LORA).exists()


def test_a_readme_of_the_user_is_not_overwritten(
    flags: list[str], output_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output_dir.mkdir()
    (output_dir / "README.md").write_text("# My notes\n")
    for more in ([], ["--overwrite"]):
        assert run([*flags, *FAST, *more]) == 2
        assert "README.md would be replaced or deleted, but this" in capsys.readouterr().err
    assert (output_dir / "README.md").read_text() == "# My notes\n"


def test_a_token_missing_in_the_prompt_is_reported(
    flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*flags, "--token", "zwx"]) == 2
    assert "--token is zwx, which is not in the --instance_prompt" in capsys.readouterr().err


def test_the_result_s_options_may_change_on_resuming(flags: list[str], output_dir: Path) -> None:
    assert run([*flags, *FAST, "--checkpointing_steps", "1"]) == 0
    more = ["--resume", "latest", "--license", "openrail", "--lora_file", "no"]
    assert run([*flags, *FAST, *more]) == 0
    assert read_concept(output_dir / "concept.safetensors").metadata["license"] == "openrail"
