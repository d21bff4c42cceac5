"""Bases that are one file, in the layout of the original release."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from loldu import read_concept
from loldu.base.config import BaseModelConfig
from loldu.base.open import load_pipeline
from loldu.errors import LoLDUError
from tests.loldu.base.original_layout import save_single_file, vae_weights
from trainer.__main__ import run

PARTS = ("unet", "vae", "text_encoder")
NUMBER = torch.zeros(2, 2)


@pytest.fixture(scope="module")
def base(base_folder: Path) -> StableDiffusionPipeline:
    return load_pipeline(str(base_folder))


@pytest.fixture(scope="module")
def file(base: StableDiffusionPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_single_file(base, tmp_path_factory.mktemp("file") / "tiny.safetensors")


@pytest.fixture
def changed(file: Path, tmp_path: Path) -> Callable[..., Path]:
    """Return a copy of the file with other weights, or without those of a prefix."""

    def write(more: dict[str, Tensor] | None = None, without: str = "none") -> Path:
        kept = {k: v for k, v in load_file(file).items() if not k.startswith(without)}
        save_file({**kept, **(more or {})}, tmp_path / "changed.safetensors")
        return tmp_path / "changed.safetensors"

    return write


def same_weights(ours: StableDiffusionPipeline, theirs: StableDiffusionPipeline) -> None:
    for part in PARTS:
        expected = getattr(theirs, part).state_dict()
        got = getattr(ours, part).state_dict()
        assert got.keys() == expected.keys()
        for name, weight in got.items():
            assert torch.equal(weight, expected[name]), name


def test_a_single_file_gives_the_pipeline_of_its_folder(
    file: Path, base: StableDiffusionPipeline, base_folder: Path
) -> None:
    pipeline = load_pipeline(BaseModelConfig(str(file), single_file_config=str(base_folder)))
    same_weights(pipeline, base)
    assert pipeline.tokenizer("a toy").input_ids == base.tokenizer("a toy").input_ids
    assert pipeline.safety_checker is None
    for part in PARTS:
        assert not any(p.requires_grad for p in getattr(pipeline, part).parameters())


def test_half_precision_in_the_file_or_in_the_run(
    file: Path, base_folder: Path, changed: Callable[..., Path]
) -> None:
    half = changed({name: weight.half() for name, weight in load_file(file).items()})
    pipeline = load_pipeline(BaseModelConfig(str(half), single_file_config=str(base_folder)))
    assert [getattr(pipeline, part).dtype for part in PARTS] == [torch.float32] * 3
    config = BaseModelConfig(str(file), single_file_config=str(base_folder))
    pipeline = load_pipeline(config, torch_dtype=torch.bfloat16)
    assert [getattr(pipeline, part).dtype for part in PARTS] == [
        *(torch.bfloat16, torch.float32, torch.bfloat16)
    ]


def test_training_from_a_single_file_equals_training_from_the_folder(
    file: Path,
    base_folder: Path,
    flags: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(file.parent.parent)
    place = str(file.relative_to(file.parent.parent))
    single = ["--pretrained_model_name_or_path", place, "--single_file_config", str(base_folder)]
    results = [tmp_path / name / "concept.safetensors" for name in ("folder", "file")]
    for result, more in zip(results, ([], single), strict=True):
        out = ["--output_dir", str(result.parent), "--max_train_steps", "2"]
        assert run([*flags, *more, *out]) == 0
    of_folder, of_file = (read_concept(result) for result in results)
    for ours, theirs in zip(of_file.layers, of_folder.layers, strict=True):
        assert torch.equal(ours.delta, theirs.delta)
    # How a person finds the base again: by name, and by the digest that model sites list.
    assert of_file.base == "tiny.safetensors"
    record = of_file.metadata["base"]
    assert record["pretrained_model_name_or_path"] == "tiny.safetensors"
    assert record["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert str(tmp_path.parent) not in str(of_file.metadata)


def test_without_the_hub_the_error_says_what_to_give(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for layout in (None, "some/base"):
        with pytest.raises(LoLDUError, match=r"any diffusers folder .* --single_file") as caught:
            load_pipeline(BaseModelConfig(str(file), single_file_config=layout))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("prefix", ["first_stage_model.", ""])
def test_a_vae_may_be_a_file(
    prefix: str, file: Path, base: StableDiffusionPipeline, base_folder: Path, tmp_path: Path
) -> None:
    weights = {name: weight.contiguous() for name, weight in vae_weights(base.vae).items()}
    weights["decoder.conv_out.bias"] = torch.full((3,), 3.0)
    vae = tmp_path / "vae.safetensors"
    save_file({f"{prefix}{name}": weight for name, weight in weights.items()}, vae)
    for name in (base_folder, file):
        pipeline = load_pipeline(
            BaseModelConfig(str(name), vae=str(vae), single_file_config=str(base_folder))
        )
        got = pipeline.vae.state_dict()
        torch.testing.assert_close(got.pop("decoder.conv_out.bias"), torch.full((3,), 3.0))
        expected = base.vae.state_dict()
        assert all(torch.equal(weight, expected[key]) for key, weight in got.items())
        assert pipeline.vae.dtype == torch.float32


def test_a_vae_completes_a_file_without_one(
    base: StableDiffusionPipeline, base_folder: Path, changed: Callable[..., Path]
) -> None:
    path = changed(without="first_stage_model.")
    with pytest.raises(LoLDUError, match="contains no VAE; give one with --vae"):
        load_pipeline(BaseModelConfig(str(path), single_file_config=str(base_folder)))
    vae = str(base_folder / "vae")
    same_weights(
        load_pipeline(BaseModelConfig(str(path), single_file_config=str(base_folder), vae=vae)),
        base,
    )


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"lora_unet_down_to_q.lora_down.weight": NUMBER}, "is a LoRA, not a base"),
        ({"unet.down_blocks.0.to_q.lora_A.weight": NUMBER}, "is a LoRA, not a base"),
        ({"decoder.conv_in.weight": NUMBER}, "is a VAE: give it with --vae"),
        ({"first_stage_model.decoder.conv_in.weight": NUMBER}, "is a VAE: give it with --vae"),
        ({"conditioner.embedders.0.weight": NUMBER}, "is SDXL's refiner"),
        (
            {"double_blocks.0.img_attn.norm.key_norm.scale": NUMBER},
            "contains no Stable Diffusion UNet",
        ),
    ],
)
def test_a_file_that_is_no_base_is_reported(
    weights: dict[str, Tensor], message: str, tmp_path: Path, base_folder: Path
) -> None:
    save_file(weights, tmp_path / "x.safetensors")
    with pytest.raises(LoLDUError, match=message):
        load_pipeline(
            BaseModelConfig(str(tmp_path / "x.safetensors"), single_file_config=str(base_folder))
        )


def test_an_incomplete_or_foreign_file_is_reported(
    base_folder: Path, changed: Callable[..., Path]
) -> None:
    def message(path: Path) -> str:
        with pytest.raises(LoLDUError) as error:
            load_pipeline(BaseModelConfig(str(path), single_file_config=str(base_folder)))
        assert "\n" not in str(error.value)
        return str(error.value)

    unet = "model.diffusion_model."
    assert "contains no text encoder" in message(changed(without="cond_stage_model."))
    nine = {f"{unet}input_blocks.0.0.weight": torch.zeros(8, 9, 3, 3)}
    assert "takes 9 channels, so it is for inpainting" in message(changed(nine))
    assert "lacks weights" in message(changed(without=f"{unet}out.2.bias"))
    wide = {f"{unet}out.2.bias": torch.zeros(5)}
    assert "conv_out.bias expected shape" in message(changed(wide))
    whole = changed()
    whole.write_bytes(whole.read_bytes()[:-100])
    assert "is incomplete" in message(whole)


def test_an_invalid_layout_is_reported(file: Path, tmp_path: Path) -> None:
    for layout, message in {
        str(file): "is a file; give a diffusers folder or a hub id",
        str(tmp_path): "has no model_index.json",
        "./nowhere": "--single_file_config ./nowhere does not exist: give a diffusers folder or",
    }.items():
        with pytest.raises(LoLDUError, match=message):
            load_pipeline(BaseModelConfig(str(file), single_file_config=layout))


def test_an_invalid_vae_file_is_reported(base_folder: Path, tmp_path: Path) -> None:
    save_file({"x.lora_down.weight": NUMBER}, tmp_path / "lora.safetensors")
    with pytest.raises(LoLDUError, match=r"The VAE .*lora\.safetensors cannot be read"):
        load_pipeline(BaseModelConfig(str(base_folder), vae=str(tmp_path / "lora.safetensors")))
