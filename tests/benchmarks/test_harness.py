import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from benchmarks.harness import Options, in_turns, peak_bytes, ratio, run, show
from benchmarks.kernels import kernels


def test_the_peak_counts_memory_held_at_once() -> None:
    kept = [torch.zeros(250)]

    def step() -> None:
        first = torch.zeros(1000)  # 4000 bytes
        second = torch.zeros(500)  # 6000 with it
        del first
        kept[0] = second + torch.zeros(100).sum()  # 2000, 2000, 400 and 4: less than 6000

    assert peak_bytes("cpu", step) == 6000


def test_only_repeated_calls_are_counted() -> None:
    x = torch.randn(8, 8)

    def take(steps: int) -> None:
        torch.linalg.inv(x)
        for _ in range(steps):
            x.mm(x).mm(x)

    result = kernels(take, 3)
    calls = {kernel["name"]: kernel["calls_per_step"] for kernel in result["kernels"]}
    assert calls["aten::mm"] == 2
    assert calls["aten::linalg_inv_ex"] == 0
    assert result["launches_per_step"] is None  # there is no GPU
    assert result["ms_per_step"] > 0


@dataclass(frozen=True)
class Toy(Options):
    """A benchmark of a few lines."""

    size: int = 3


def toy(argv: list[str]) -> None:
    def measure(options: Toy) -> dict[str, object]:
        clock = iter(range(1, 100))
        calls = {"ours": lambda: 2.0 * next(clock), "theirs": lambda: 1.0 * next(clock)}
        seconds = in_turns(calls, options.repetitions)
        return {"times_as_long": ratio(seconds["ours"], seconds["theirs"])}

    run("toy", Toy, measure, lambda record: [show("toy", [record["times_as_long"]])], argv)


def test_a_benchmark_is_options_and_a_measurement(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "toy.json"
    toy(["--size", "5", "--repetitions", "2", "--output", str(output)])
    record = json.loads(output.read_text())
    assert record["command"].startswith("python -m benchmarks.toy --size 5")
    assert (record["size"], record["repetitions"], record["device"]) == (5, 2, "cpu")
    # Ours goes first, then theirs: 2 * 1 / 2 and 2 * 4 / 3.
    assert record["times_as_long"] == {"median": 1.833, "min": 1.0, "max": 2.667}
    assert "1.833" in capsys.readouterr().err


def test_no_repetition_gives_one_clear_error() -> None:
    with pytest.raises(SystemExit, match="give every --repetitions a number of at least 1"):
        toy(["--repetitions", "0"])
