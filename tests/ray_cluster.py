"""A Ray cluster on this machine for tests: that of RAY_ADDRESS, or one that is started here."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import psutil

ROOT = str(Path(__file__).parent.parent)
PATIENCE_S = 900
"""For everything: a busy machine starts processes slowly."""
_PORTS = ("node-manager", "object-manager", "dashboard-agent-grpc", "dashboard-agent-listen")
_PORTS += ("runtime-env-agent", "metrics-export", "ray-client-server", "")


@contextmanager
def cluster() -> Generator[Any]:
    """Yield Ray, connected to a cluster; `RAY_ADDRESS` is its address inside the block."""
    import ray

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    with ExitStack() as stack:
        if "RAY_ADDRESS" not in os.environ:
            stack.enter_context(_started())
        _connect(ray)
        stack.callback(ray.shutdown)
        yield ray


def processes(title: str) -> list[psutil.Process]:
    """Return the processes that Ray has given a title with these words."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter(["cmdline"]):
        if any(word.startswith(f"ray::{title}") for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@contextmanager
def _started() -> Generator[None]:
    """Start a cluster with ports that are known before: waiting for others can take too long."""
    ports = [f"--{name}-port={free_port()}".replace("---", "--") for name in _PORTS]
    script = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"]
    flags = ["--num-cpus=2", "--include-dashboard=false", "--object-store-memory=200000000"]
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a token is not found by address
    environment = {"PYTHONPATH": ROOT, "RAY_agent_register_timeout_ms": "300000"}
    process = subprocess.Popen(
        [*script, *flags, *ports],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ["RAY_ADDRESS"] = f"127.0.0.1:{ports[-1].rpartition('=')[2]}"
    try:
        yield
    finally:
        del os.environ["RAY_ADDRESS"]
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        _, left = psutil.wait_procs(children, timeout=30)
        for child in left:
            child.kill()


def _connect(ray: Any) -> None:  # noqa: ANN401
    begun = time.monotonic()
    while True:
        try:
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
            return
        except Exception:  # Ray raises plain ones too
            if time.monotonic() > begun + PATIENCE_S:
                raise
            time.sleep(1)
