"""Runs a program that nobody has read in a process of its own, with limits.

The limits keep a runaway program from taking the machine along. They are no wall against malice:
who evaluates models that might mean harm does so in a container or a virtual machine.
"""

import contextlib
import os
import resource
import secrets
import signal
import subprocess
import sys
import tempfile

_MIB = 2**20


def passes(program: str, *, seconds: float = 3.0, memory_mib: int = 4096) -> bool:
    """Whether a Python program comes to its end without an error, in time and in memory.

    Args:
        program: Its source; an early exit does not count as its end.
        seconds: Of time.
        memory_mib: Of address space.
    """
    token = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as output,  # where its size has a limit, as in a pipe it has not
        subprocess.Popen(
            [sys.executable, "-I", "-c", f"{program}\n\nprint({token!r})"],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
            preexec_fn=lambda: _limit(seconds, memory_mib),
        ) as process,
    ):
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # whatever it started too
        output.seek(0)
        return process.returncode == 0 and output.read().rstrip().endswith(token.encode())


def _limit(seconds: float, memory_mib: int) -> None:
    limits = {
        resource.RLIMIT_CPU: int(seconds) + 1,
        resource.RLIMIT_AS: memory_mib * _MIB,
        resource.RLIMIT_FSIZE: _MIB,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in limits.items():
        resource.setrlimit(what, (most, most))
