"""Run a script or a module as Python would, and record its peak memory.

``python -m benchmarks.sampling SAMPLES TARGET ...`` writes a line to SAMPLES whenever the peak
grows. It imports nothing heavy, so that the memory is the target's own.
"""

import json
import re
import resource
import runpy
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EVERY_S = 0.02


def peak_bytes() -> dict[str, int]:
    """Return the peak memory of this process: on the GPU once it uses one, else resident."""
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if not hasattr(cuda, "max_memory_reserved") or not cuda.is_initialized():
        return {"resident": _resident()}
    return {"allocated": cuda.max_memory_allocated(), "reserved": cuda.max_memory_reserved()}


def _resident() -> int:
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss on Linux includes the parent's at the fork
        found = re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"))
        return int(found[1]) * 1024 if found else 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def sample(path: Path) -> None:
    """Record the peak whenever it changes, until the process ends."""
    last: dict[str, int] = {}
    with path.open("w", encoding="utf-8", buffering=1) as file:
        while True:
            if (peak := peak_bytes()) != last:
                file.write(json.dumps({"at": time.monotonic(), "peak_bytes": peak}) + "\n")
                last = peak
            time.sleep(EVERY_S)


def main(argv: Sequence[str]) -> None:
    """Run the target beside the sampling."""
    samples, target, *arguments = argv
    threading.Thread(target=sample, args=(Path(samples),), daemon=True).start()
    sys.argv = [target, *arguments]
    if target.endswith(".py"):
        sys.path.insert(0, str(Path(target).resolve().parent))
        runpy.run_path(target, run_name="__main__")
    else:
        runpy.run_module(target, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
