import json
from pathlib import Path

import pytest
import torch

from benchmarks.stable_diffusion import random_unet
from benchmarks.train_step import LOLDU, LORA, MAKERS, Options, main

SMALLEST = Options(
    block_out_channels=(32, 32, 32, 32), cross_attention_dim=32, latent_size=16, rank=4
)
FLAGS = [
    *("--block_out_channels", "32", "32", "32", "32", "--cross_attention_dim", "32"),
    *("--latent_size", "16", "--rank", "4", "--repetitions", "2", "--concepts", "2"),
]


@pytest.fixture(autouse=True)
def accelerate_has_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")  # it is taken back after the test


@pytest.mark.parametrize("method", [LOLDU, LORA])
def test_steps_are_those_of_the_trainer(method: str) -> None:
    unet = random_unet(SMALLEST)
    before = {name: weight.clone() for name, weight in unet.named_parameters()}
    variant = MAKERS[method](unet, SMALLEST)
    held = variant.state_bytes()
    assert variant.take(3) > 0
    changed = {
        name for name, weight in unet.named_parameters()
        if not torch.equal(weight, before.get(name.replace(".base_layer", ""), torch.zeros(())))
    }  # fmt: skip
    assert all(("loldu" if method == LOLDU else "lora") in name for name in changed)
    assert changed
    # AdamW's two moments, and a count of the steps for every parameter.
    parameters = [p for p in unet.parameters() if p.requires_grad]
    assert variant.trained == sum(p.numel() for p in parameters)
    assert variant.state_bytes() - held == 2 * 4 * variant.trained + 4 * len(parameters)


@pytest.mark.slow
def test_the_record_has_time_and_memory_of_every_variant(tmp_path: Path) -> None:
    output = tmp_path / "train_step.json"
    main([*FLAGS, "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["command"].startswith("python -m benchmarks.train_step --block_out_channels 32")
    assert (result["device"], result["dtype"], result["latent_size"]) == ("cpu", "float32", 16)
    variants = result["variants"]
    assert {name: variant["trained"] // 128 for name, variant in variants.items()} == {
        "floor": 0,
        "loldu": 4 + 1,  # z and sigma
        "lora": 4 * (32 + 32),
        "loldu_concepts": 2 * (4 + 1),
    }
    for variant in variants.values():
        for spread in (variant["seconds_per_step"], *variant["times_as_long_as"].values()):
            assert 0 < spread["min"] <= spread["median"] <= spread["max"]
        assert variant["above_the_model_mib"] >= variants["floor"]["above_the_model_mib"]
    assert variants["floor"]["state_mib"] == 0
    assert variants["floor"]["times_as_long_as"]["floor"]["median"] == 1
    assert variants["lora"]["times_the_memory_of"]["lora"] == 1
    assert "times_as_long_as_one_by_one" in variants["loldu_concepts"]


def test_an_unsupported_dtype_gives_one_clear_error() -> None:
    with pytest.raises(SystemExit, match="fp16 needs a CUDA GPU"):
        main([*FLAGS, "--dtype", "float16"])
