import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks.adapters import METHODS, DenseLDULinear, adapted
from benchmarks.forward import main, saved_bytes
from benchmarks.stable_diffusion import projections
from loldu.adapter.diagonal import LoLDUDiagonal
from loldu.adapter.layer import LoLDULayer

FLAGS = [
    *("--block_out_channels", "32", "32", "32", "32", "--cross_attention_dim", "32"),
    *("--latent_size", "16", "--repetitions", "1", "--projection_repetitions", "2"),
    *("--vit_width", "32", "--vit_tokens", "64"),
]


def projection(out: int, in_: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(to_q=nn.Linear(in_, out))).requires_grad_(False)


@pytest.mark.parametrize("shape", [(48, 48), (48, 64), (64, 48)])
def test_the_dense_formulation_equals_ours(shape: tuple[int, int]) -> None:
    model = projection(*shape)
    linear = model.get_submodule("to_q")
    dense = adapted(model, METHODS["loldu_dense_r32"])["to_q"]
    ours = adapted(model, METHODS["loldu_r32"])["to_q"]
    assert isinstance(dense, DenseLDULinear)
    assert isinstance(ours, LoLDULayer)
    assert model.get_submodule("to_q") is linear
    diagonal = ours.diagonal("default")
    assert isinstance(diagonal, LoLDUDiagonal)
    x = torch.randn(5, shape[1])
    torch.testing.assert_close(dense(x), linear(x), atol=1e-5, rtol=1e-5)
    change = 1e-2 * torch.randn(32)
    with torch.no_grad():
        diagonal.dz.copy_(change)
        dense.z.add_(change)
    assert (ours(x) - linear(x)).abs().max() > 1e-3
    torch.testing.assert_close(dense(x), ours(x), atol=1e-5, rtol=1e-5)


def test_every_method_starts_from_the_same_projections() -> None:
    model = projection(48, 64)
    plain = projections(model)
    for method in METHODS.values():
        layer = adapted(model, method)["to_q"]
        assert projections(model) == plain
        assert getattr(layer, "base_layer", plain["to_q"]) is plain["to_q"]


def test_saved_bytes_count_each_storage_once_without_weights() -> None:
    model = nn.Linear(6, 5, bias=False).requires_grad_(False)
    x = torch.randn(7, 6, requires_grad=True)
    assert saved_bytes(model, lambda: model(x)) == 0
    assert saved_bytes(model, lambda: model(x).exp() * x[:, :5]) == 4 * (7 * 5 + 7 * 6)


def test_the_record_has_time_and_memory_of_every_method(tmp_path: Path) -> None:
    output = tmp_path / "forward.json"
    main([*FLAGS, "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["command"].startswith("python -m benchmarks.forward --block_out_channels 32")
    assert (result["device"], result["dtype"], result["latent_size"]) == ("cpu", "float32", 16)
    assert [(case["case"], case["layers"]) for case in result["cases"]] == [
        ("projection 32 x 32, 4096 tokens", 1),
        ("projection 32 x 32, 256 tokens", 1),
        ("projection 32 x 32, 77 tokens", 1),
        ("projection 32 x 32, 64 tokens", 1),
        ("unet, 16 x 16 latents", 128),
    ]
    for case in result["cases"]:
        methods, layers = case["methods"], case["layers"]
        assert {name: method["trained"] // layers for name, method in methods.items()} == {
            "frozen": 0,
            "loldu_r32": 32 + 1,  # z and sigma
            "loldu_full_rank": 32 + 1,
            "loldu_dense_r32": 32,
            "lora_r32": 32 * (32 + 32),
            "lora_r4": 4 * (32 + 32),
            "vera_r256": 256 + 32,
            "fourierft_n1000": 1000,
        }
        for method in methods.values():
            spreads = (method["seconds"], *method["times_as_long_as"].values())
            for spread in spreads:
                assert 0 < spread["min"] <= spread["median"] <= spread["max"]
            assert method["saved_mib"] >= methods["frozen"]["saved_mib"]
        assert methods["frozen"]["adapter_mib"] == 0
        assert methods["frozen"]["times_as_long_as"]["frozen"]["median"] == 1
        assert methods["lora_r32"]["times_the_memory_of"]["lora_r32"] == 1
    # Of one projection LoRA keeps x and A x.
    assert result["cases"][0]["methods"]["lora_r32"]["saved_mib"] == 4 * 4096 * (32 + 32) / 2**20
    assert result["cases"][0]["methods"]["lora_r32"]["times_the_memory_of"]["frozen"] is None
