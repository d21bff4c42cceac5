"""Untrusted programs: when they pass, and what stops them."""

import os
import time
from pathlib import Path

import pytest

from experiments.kinds.instruct.untrusted import passes


def test_a_program_passes_when_it_finishes() -> None:
    assert passes("def add(a, b):\n    return a + b\n\nassert add(2, 3) == 5")
    assert passes("print('no line end', end='')")


@pytest.mark.parametrize(
    "program",
    [
        "assert 1 + 1 == 3",
        "def broken(:",
        "raise SystemExit(0)",
        "import os\nos._exit(0)",
        "import sys\nsys.stdin.read()[0]",
        "x = bytearray(2**33)",
        "open('large', 'wb').write(bytes(2**22))",
        "print('x' * 3 * 2**20)",  # which a pipe would take, and any amount of it
    ],
)
def test_a_program_fails_otherwise(program: str) -> None:
    assert not passes(program, seconds=5, memory_mib=512)


def test_a_runaway_program_is_killed_with_its_children(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    program = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open({str(mark)!r}, "w").write(str(child.pid))
while True:
    pass
"""
    assert not passes(program, seconds=2)
    pid = int(mark.read_text())
    for _ in range(100):  # the system buries it
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    os.kill(pid, 9)
    pytest.fail("the child lives on")


def test_a_program_does_not_see_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    assert passes("import os\nassert 'A_SECRET' not in os.environ\nassert os.listdir('.') == []")
