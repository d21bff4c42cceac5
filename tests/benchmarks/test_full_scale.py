import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import full_scale
from benchmarks.full_scale import SHAPES, main
from loldu import LoLDUConfig


@pytest.mark.parametrize(
    ("name", "parameters", "adapter"),
    # The published sizes, and LoLDU's of the paper with a scale a layer.
    [
        ("glue", 124.6e6, 12 * 2 * 769),
        ("vision", 85.8e6, 12 * 2 * 769),
        ("instruct", 6.738e9, 64 * 1025),
    ],
)
def test_shapes_are_true(name: full_scale.Name, parameters: float, adapter: int) -> None:
    shape = SHAPES[name]
    with torch.device("meta"):
        model = shape.build(shape.layers)
    total = sum(p.numel() for p in model.parameters())
    assert total == pytest.approx(parameters, rel=0.01)
    widths = [
        m for n, m in model.named_modules() if n.endswith(("q_proj", "v_proj", "query", "value"))
    ]
    assert sum(min(shape.rank, *m.weight.shape) + 1 for m in widths) == adapter


def test_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small(layers: int) -> LlamaForCausalLM:
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=layers,
                num_attention_heads=2,
                num_key_value_heads=2,
            )
        )

    shape = SHAPES["instruct"]
    monkeypatch.setitem(SHAPES, "instruct", shape._replace(build=small))
    output = tmp_path / "full.json"
    flags = ["--experiments", "instruct", "--repetitions", "2", "--layers", "1"]
    main([*flags, "--output", str(output)])
    record = json.loads(output.read_text())["models"]["instruct"]
    assert record["trained"] == {"loldu": 2 * 33, "lora": 2 * 2 * 64 * 32}
    assert set(record["creation_seconds"]) == {"loldu", "lora", "pissa"}
    assert all(times["median"] > 0 for times in record["step_seconds"].values())


def test_steps_train_their_own_adapter_alone() -> None:
    shape = SHAPES["glue"]
    model, batch = shape.build(1), shape.inputs(1)
    base = [p.detach().clone() for p in model.parameters()]
    configs = {
        "loldu": LoLDUConfig(r=4, target_modules=["query"]),
        "lora": LoraConfig(r=4, target_modules=["query"]),
    }
    made = {name: full_scale.make(model, config, "cpu") for name, config in configs.items()}

    def weights() -> dict[str, list[torch.Tensor]]:
        return {
            name: [p.detach().clone() for layer in own.layers.values() for p in layer.parameters()]
            for name, own in made.items()
        }

    for name, own in made.items():
        before = weights()
        full_scale._step(model, own.layers, batch, torch.autocast("cuda", enabled=False))()
        after = weights()
        for other in made:
            same = all(map(torch.equal, before[other], after[other]))
            assert same == (other != name)
    full_scale.install(model, {n: y.base_layer for n, y in made["loldu"].layers.items()})
    assert all(map(torch.equal, base, model.parameters()))
