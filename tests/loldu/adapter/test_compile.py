"""Runs `compiled*.py` without the type checks of all other tests, which Dynamo cannot trace."""

import subprocess
import sys
from pathlib import Path

import pytest

TESTS = [Path(__file__).with_name(name) for name in ("compiled.py", "compiled_shapes.py")]


@pytest.mark.parametrize(
    "marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)], ids=["quick", "slow"]
)
def test_compiled_models(marked: str) -> None:
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "--import-mode=importlib", "-q"]
    run = subprocess.run(
        [*command, "--show-capture=no", "-m", marked, *TESTS],
        cwd=TESTS[0].parents[3],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
