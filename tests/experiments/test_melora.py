"""MELoRA: the block-diagonal formula, and the parameters of LLaMA2-7B."""

from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.config import read_experiment
from experiments.methods import adapt, count_parameters
from loldu.errors import LoLDUError


def llama(**more: Any) -> LlamaForCausalLM:  # noqa: ANN401
    torch.manual_seed(0)
    small = {
        "vocab_size": 30,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    return LlamaForCausalLM(LlamaConfig(**(small | more))).eval()


def _layer(model: nn.Module, name: str) -> Any:  # noqa: ANN401
    return next(m for n, m in model.named_modules() if n.endswith(f"layers.1.self_attn.{name}"))


@pytest.mark.parametrize("name", ["q_proj", "v_proj"])  # square, and half as high as wide
def test_the_update_is_block_diagonal_with_the_scaling_of_one_block(name: str) -> None:
    model = adapt(llama(), "melora", {"n": 4, "r": 2, "lora_alpha": 6}, seed=0)
    layer = _layer(model, name)
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    with torch.no_grad():
        second.normal_(generator=torch.Generator().manual_seed(1))
    rows, columns = layer.base_layer.weight.shape
    dense = torch.zeros(rows, columns)
    for i in range(4):
        a = first[2 * i : 2 * i + 2]  # (r, in / n)
        b = second[rows // 4 * i :][: rows // 4]  # (out / n, r)
        at = (
            slice(rows // 4 * i, rows // 4 * (i + 1)),
            slice(columns // 4 * i, columns // 4 * (i + 1)),
        )
        dense[at] = 6 / 2 * b @ a
    assert torch.linalg.matrix_rank(dense) == min(rows, 8)
    x = torch.randn(3, 5, columns, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = x @ (layer.base_layer.weight + dense).T
        torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_merging_changes_nothing_and_starting_is_the_base() -> None:
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        plain = llama()(ids).logits
        model = adapt(llama(), "melora", {"n": 2, "r": 1}, seed=0).eval()
        assert isinstance(model, PeftModel)
        torch.testing.assert_close(model(input_ids=ids).logits, plain)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        tuned = model(input_ids=ids).logits
        assert (tuned - plain).abs().max() > 1e-3
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(ids).logits, tuned, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"n": 3}, "options for melora"), ({"n": 0}, "must be positive"), ({"rank": 2}, "rank")],
)
def test_mistakes_are_reported(options: dict[str, int], message: str) -> None:
    with pytest.raises(LoLDUError, match=message):
        adapt(llama(), "melora", options, seed=0)


# 64 layers of 4096 x 4096: r floats and a scale, or r columns and rows, or one of either in shares.
NUMBERS = {
    "loldu": 64 * 1024 + 64,
    "svfit": 64 * 1024 + 64,
    "lora": 64 * 64 * (4096 + 4096),
    # On the meta device PEFT counts the rank of each layer too, which is not trained otherwise.
    "adalora": 64 * 64 * (4096 + 4096 + 1) + 64,
    "melora": 64 * 1 * (4096 + 4096),
    "none": 0,
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("row", NUMBERS)
def test_parameters_of_llama_2_7b(row: str) -> None:
    experiment = read_experiment("instruct")
    run = next(iter(experiment.runs(experiment.row(row), "full")))
    with torch.device("meta"):
        base = LlamaForCausalLM(LlamaConfig())  # the defaults are LLaMA2-7B
    model = adapt(base, run.method, run.options, seed=0, total_steps=100)
    assert count_parameters(model) == (NUMBERS[row], 0)
    paper = experiment.row(row).paper.get("parameters")
    if row in ("lora", "adalora", "melora"):
        assert paper == pytest.approx(NUMBERS[row], rel=0.05)
    if row == "loldu":  # the paper counts another rank
        assert paper == pytest.approx(64 * 256, rel=0.05)
