"""Records of measurements: the result with its command, commit, versions and machine."""

import json
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from loldu import __version__
from loldu.files import write_atomically


def provenance(module: str, arguments: Sequence[str], libraries: Sequence[str]) -> dict[str, Any]:
    """Return what is needed to repeat a measurement: command, commit, versions, machine."""
    return {
        "command": shlex.join(["python", "-m", module, *arguments]),
        "commit": _commit(),
        "versions": {
            "python": platform.python_version(),
            "loldu": __version__,
            **{library: version(library) for library in libraries},
        },
        "machine": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "system": platform.system(),
            **({"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}),
        },
    }


def write_record(output: Path, record: dict[str, Any]) -> None:
    """Write a record as JSON; an existing file is replaced."""
    output.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(output, json.dumps(record, indent=2) + "\n")


def _commit() -> str | None:
    """Return the commit of the checkout, with a `+` if files differ; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
    folder = Path(__file__).parent
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
