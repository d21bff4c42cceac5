import json
from pathlib import Path

import torch

from benchmarks.concepts import METHODS, Options, main

FLAGS = [
    *("--block_out_channels", "32", "32", "32", "32", "--cross_attention_dim", "16"),
    *("--sample_size", "8", "--rank", "4", "--lora_rank", "2", "--batch", "2"),
]


def test_timed_calls_compute_their_batches() -> None:
    options = Options(
        batch=2, rank=4, lora_rank=2, block_out_channels=(32, 32, 32, 32), cross_attention_dim=16,
        sample_size=8,
    )  # fmt: skip
    with torch.no_grad():
        for build in METHODS.values():
            outputs = {}
            calls, _ = build(options, 2)
            for call, (prepare, timed) in calls.items():
                prepare()
                if call != "switch":
                    outputs[call] = timed().sample
            torch.testing.assert_close(outputs["mixed"][0], outputs["plain"][0])
            assert (outputs["plain"] - outputs["base"]).abs().max() > 1e-3


def test_the_record_has_memory_and_times(tmp_path: Path) -> None:
    output = tmp_path / "concepts.json"
    main([*FLAGS, "--concepts", "1", "3", "--repetitions", "1", "--output", str(output)])
    result = json.loads(output.read_text())
    assert result["command"].startswith("python -m benchmarks.concepts --block_out_channels 32")
    assert [(row["concepts"], row["different_in_a_batch"]) for row in result["rows"]] == [
        (1, 1),
        (3, 2),
    ]
    for row in result["rows"]:
        # 128 layers: dz and pivots; LoRA has A and B of 32 x 32, or 16 and 32 wide.
        assert row["methods"]["loldu"]["bytes_per_concept"] == 128 * 2 * 4 * 4
        assert row["methods"]["lora"]["bytes_per_concept"] == 4 * 2 * (96 * 64 + 32 * 48)
        for method in row["methods"].values():
            for spread in (*method["seconds"].values(), method["mixed_to_plain"]):
                assert 0 < spread["min"] <= spread["median"] <= spread["max"]
