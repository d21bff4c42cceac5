import json
from pathlib import Path

import torch
from peft import get_peft_model
from torch import nn

from benchmarks import few_tokens
from loldu import LoLDUConfig


def test_multiplications_are_those_of_the_factored_route() -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(40, 30)), LoLDUConfig(r=5, target_modules=["0"]))
    x = torch.randn(2, 40, requires_grad=True)
    # W x, A x and B, forward; then the same transposed.
    expected = 2 * 2 * (40 * 30 + 5 * (40 + 30))
    assert few_tokens.multiplications(lambda: model(x).sum().backward()) == expected


def test_the_result_holds_time_and_multiplications_beside_lora(tmp_path: Path) -> None:
    output = tmp_path / "few_tokens.json"
    arguments = ["--repetitions", "2", "--width", "48", "--layers", "1", "--batches", "1", "2"]
    few_tokens.main([*arguments, "--output", str(output)])
    result = json.loads(output.read_text())
    assert [case["tokens"] for case in result["cases"]] == [48, 96]
    for case in result["cases"]:
        assert set(case["methods"]) == {"lora_r32", "loldu_r32", "loldu_r12", "loldu_r48"}
        counts = {n: m["times_the_multiplications"] for n, m in case["methods"].items()}
        assert counts["lora_r32"] == 1
        assert counts["loldu_r12"] < counts["loldu_r32"] < counts["loldu_r48"]
