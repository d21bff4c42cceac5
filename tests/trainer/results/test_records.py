import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from trainer.__main__ import run
from trainer.results import records
from trainer.results.records import peak_memory_mib


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_there_is_one_bar(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(flags) == 0
    bars = [part for part in terminal.getvalue().split("\r") if part.startswith("training:")]
    last = bars[-1].splitlines()[0]
    assert last.startswith("training: 100%")
    for part in ("4/4 [", "it/s, " if "it/s" in last else "s/it, ", "loss ", "lr 1.0e-02", "peak "):
        assert part in last
    assert "step 4/4" not in terminal.getvalue()


def test_peak_memory_is_the_process_s_own_where_the_system_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ru_maxrss` survives exec: a small process of a large parent has the parent's."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "platform", "linux")
    usage = SimpleNamespace(ru_maxrss=9 * 2**10)
    monkeypatch.setattr(resource, "getrusage", lambda _: usage)
    status = tmp_path / "status"
    monkeypatch.setattr(records, "_STATUS", status)
    assert peak_memory_mib() == 9
    status.write_text("VmPeak:\t   99999 kB\nVmHWM:\t    3072 kB\nVmRSS:\t    2048 kB\n")
    assert peak_memory_mib() == 3
    status.write_text("Name:\tpython\n")  # not every system that has the file has the line
    assert peak_memory_mib() == 9
