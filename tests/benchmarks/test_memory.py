import torch

from benchmarks.kernels import kernels
from benchmarks.memory import peak_bytes


def test_the_peak_is_of_what_is_held_at_once() -> None:
    kept = [torch.zeros(250)]

    def step() -> None:
        first = torch.zeros(1000)  # 4000 bytes
        second = torch.zeros(500)  # 6000 with it
        del first
        kept[0] = second + torch.zeros(100).sum()  # 2000, 2000, 400 and 4: less than 6000

    assert peak_bytes("cpu", step) == 6000


def test_only_what_every_step_does_is_counted() -> None:
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
