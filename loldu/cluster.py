"""Join a Ray cluster, or start one on this machine (`pip install 'loldu[ray]'`)."""

# Ray is an extra, and typed in part only.
# pyright: reportMissingImports=false, reportUnknownMemberType=false
# pyright: reportUnknownVariableType=false, reportUnknownArgumentType=false

import logging
import os
from collections.abc import Generator
from contextlib import contextmanager

from loldu.command import extra
from loldu.errors import LoLDUError

HERE = "ray"


@contextmanager
def joined(on: str, *, metrics_port: int | None = None) -> Generator[None]:
    """Be in a Ray cluster inside the block; a process that is already in one stays there.

    Args:
        on: `ray` for the cluster of RAY_ADDRESS or of this machine, which is started if there is
            none; `ray://HOST:PORT` for another one.
        metrics_port: Port of Prometheus metrics, if the cluster is started here.

    Raises:
        LoLDUError: If Ray is not installed, or the cluster does not answer.
    """
    if on != HERE and not on.startswith(f"{HERE}://"):
        raise LoLDUError(f"--on {on} is no place to run: give ray, or ray://HOST:PORT.")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports its use to its makers
    with extra(HERE):
        import ray
    if ray.is_initialized():
        yield
        return
    started_here = {"include_dashboard": False, "_metrics_export_port": metrics_port}
    try:
        ray.init(
            address=None if on == HERE else on,
            logging_level=logging.WARNING,
            log_to_driver=False,
            **(started_here if on == HERE else {}),
        )
    except Exception as error:  # Ray raises plain ones too
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise LoLDUError(
            f"The Ray cluster of --on {on} does not answer ({reason}): check that it runs, and "
            "that its version of Ray is the one here."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def gpus_here() -> int:
    """Return the number of GPUs of the cluster that this process is in."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))
