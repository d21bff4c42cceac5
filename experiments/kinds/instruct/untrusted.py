"""Runs an untrusted program in its own process, with limits.

The limits protect the machine from a runaway program, but not from malice: evaluate models that
might do harm in a container or a virtual machine.
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
    """Return whether a Python program ends without an error, within its time and memory.

    Args:
        program: Source code; an early exit counts as a failure.
        seconds: Time limit.
        memory_mib: Limit of the address space.
    """
    token = secrets.token_hex(16)
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as output,  # a file has a size limit, a pipe has none
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
                os.killpg(process.pid, signal.SIGKILL)  # child processes, too
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
