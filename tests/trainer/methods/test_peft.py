"""Adapters of PEFT in the trainer's loop."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file

from loldu.base.open import load_pipeline
from loldu.concept.peft_folder import read_peft_folder
from loldu.errors import LoLDUError
from trainer.__main__ import run
from trainer.methods.method import add_trainables, save_result
from trainer.options.config import Config

MakeConfig = Callable[..., Config]
Predict = Callable[[StableDiffusionPipeline], torch.Tensor]
CONFIGS = {
    "IA3": {},
    "VERA": {"r": 4},
    "OFT": {"r": 0, "oft_block_size": 4},
    "LOKR": {"r": 4, "alpha": 4},
    "LOHA": {"r": 4, "alpha": 4},
    "LORA": {"r": 4, "lora_alpha": 4, "use_dora": True},
}


@pytest.fixture
def written(tmp_path: Path) -> Callable[..., list[str]]:
    """Return a function that writes a config and returns the flags of a run with it."""

    def written(peft_type: str, **values: object) -> list[str]:
        path = tmp_path / "adapter.json"
        path.write_text(json.dumps({"peft_type": peft_type, **values}))
        return ["--method", "peft", "--adapter_config", str(path)]

    return written


@pytest.mark.parametrize("peft_type", CONFIGS)
def test_peft_loads_what_was_trained(
    peft_type: str,
    written: Callable[..., list[str]],
    base_folder: Path,
    make_config: MakeConfig,
    predict: Predict,
    tmp_path: Path,
) -> None:
    config = make_config(*written(peft_type, **CONFIGS[peft_type]))
    pipeline, fresh = load_pipeline(str(base_folder)), load_pipeline(str(base_folder))
    base = predict(pipeline)
    trained = add_trainables(pipeline, {"default": config}, {})
    torch.testing.assert_close(predict(pipeline), base, rtol=1e-4, atol=1e-5)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    (tmp_path / "run").mkdir()
    save_result(pipeline, trained, "default", config, {}, tmp_path / "run")
    folder = tmp_path / "run" / "peft"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    PeftModel.from_pretrained(fresh.unet, folder)
    assert (predict(fresh) - base).abs().max() > 1e-3
    torch.testing.assert_close(predict(fresh), predict(pipeline), rtol=1e-4, atol=1e-5)
    with trained.off():
        torch.testing.assert_close(predict(pipeline), base, rtol=1e-4, atol=1e-5)
    with pytest.raises(LoLDUError, match=f"holds a {peft_type} adapter and not a LoLDU one"):
        read_peft_folder(folder, {})


@pytest.mark.parametrize("peft_type", ["VERA", "IA3"])
def test_a_run_and_its_resumption_end_with_the_same_bits(
    peft_type: str, written: Callable[..., list[str]], flags: list[str], tmp_path: Path
) -> None:
    common = [*flags, *written(peft_type, **CONFIGS[peft_type]), "--checkpointing_steps", "2"]
    common += ["--held_out_steps", "4"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run([*common, "--output_dir", str(whole)]) == 0
    checkpoint = ["--resume", str(whole / "checkpoint-000002"), "--no_sample_at_end"]
    assert run([*common, *checkpoint, "--output_dir", str(resumed)]) == 0
    name = "peft/adapter_model.safetensors"
    ours, theirs = load_file(whole / name), load_file(resumed / name)
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    lines = (whole / "metrics.jsonl").read_text().splitlines()
    first, last = json.loads(lines[0]), json.loads(lines[-1])
    assert last["held_out_loss"] < first["held_out_loss"]
    card = (whole / "README.md").read_text()
    assert 'PeftModel.from_pretrained(pipeline.unet, "peft")' in card
    assert (whole / "samples" / "0-base.png").read_bytes() != (
        whole / "samples" / "0-concept.png"
    ).read_bytes()
    written(peft_type, **CONFIGS[peft_type], modules_to_save=None)
    assert run([*common, "--resume", "latest", "--output_dir", str(whole)]) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA4"}, r"is no config of PEFT's IA4"),
        ({"peft_type": "IA3", "rank": 3}, r"PEFT's IA3 has no rank; correct or remove it"),
        ({"peft_type": "ADALORA", "total_step": 9}, "ADALORA is not trained here"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING is not trained here"),
        ({"peft_type": "LORA", "bias": "all"}, "trains weights of the base too"),
        ({"peft_type": "LORA", "target_modules": ["nowhere"]}, "cannot be added: Target modules"),
        ({"r": 3}, "has no peft_type"),
    ],
)
def test_configs_that_cannot_be_trained_are_refused(
    values: dict[str, object],
    message: str,
    pipeline: StableDiffusionPipeline,
    make_config: MakeConfig,
    tmp_path: Path,
) -> None:
    path = tmp_path / "adapter.json"
    path.write_text(json.dumps(values))
    config = make_config("--method", "peft", "--adapter_config", str(path))
    with pytest.raises(LoLDUError, match=message):
        add_trainables(pipeline, {"default": config}, {})


def test_peft_needs_its_config(make_config: MakeConfig) -> None:
    with pytest.raises(LoLDUError, match="--method peft needs --adapter_config"):
        make_config("--method", "peft")
    with pytest.raises(LoLDUError, match="--adapter_config is for peft"):
        make_config("--adapter_config", "ia3.json")
