"""The progress line."""

import io
import sys

import pytest

from trainer.__main__ import run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_one_progress_bar(
    flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert run(flags) == 0
    bars = [part for part in terminal.getvalue().split("\r") if part.startswith("training:")]
    last = bars[-1].splitlines()[0]
    assert last.startswith("training: 100%")
    for part in ("4/4 [", "it/s, " if "it/s" in last else "s/it, ", "loss ", "lr 1.0e-02", "peak "):
        assert part in last
    assert "step 4/4" not in terminal.getvalue()
