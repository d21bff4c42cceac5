import os

import pytest
import torch

from experiments.memory import _CLEAR, forget_peak_memory
from trainer.training.memory import peak_memory_mib


@pytest.mark.skipif(
    torch.cuda.is_available() or not os.access(_CLEAR, os.W_OK),
    reason="the peak of a process can be forgotten on Linux alone",
)
def test_peak_memory_restarts() -> None:
    held = torch.ones(2**26)  # 256 MiB
    before = peak_memory_mib()
    del held
    forget_peak_memory()
    assert peak_memory_mib() < before - 200
