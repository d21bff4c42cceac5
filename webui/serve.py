"""`python -m webui.serve`, or `loldu-serve`; `--help` explains every option."""

# Ray is an extra.
# pyright: reportMissingImports=false

import logging
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from loldu.base.config import BaseModelConfig
from loldu.command import extra, program, run_command
from loldu.errors import LoLDUError
from loldu.options import limit_problems, option
from loldu.presets import installed_path
from webui.__main__ import check_base_option, is_loopback, require_free_port
from webui.serving.keys import read_keys
from webui.serving.plan import Plan

logger = logging.getLogger("webui")


@dataclass(frozen=True)
class ServeOptions:
    """Draw for other programs: hundreds of concepts on one base, by OpenAI's images API.

    curl localhost:8000/v1/images/generations -d '{"prompt": "a photo of a sks toy", "model":
    "rabbit"}' answers with a PNG in base64. `model` is a concept by its name or its word; without
    it the words in the prompt call concepts. Further keys: concepts ({"rabbit": 0.8, "hat": 0.5}),
    strength, negative_prompt, seed, n, size, num_inference_steps, guidance_scale. GET /v1/models
    lists the concepts, GET /health says whether pictures can be drawn.

    Requests that wait are drawn together in one pass, with their own concepts, prompts, seeds and
    strengths. The same seed gives the same picture, whatever is drawn with it, up to rounding.
    """

    # Folder of concepts: NAME.safetensors, runs (NAME/concept.safetensors) or the library of a
    # studio (runs/studio/library); or an address of fsspec, such as s3://bucket/concepts.
    concepts: str = "runs"
    # Base model: a diffusers folder, a Hub id or a .safetensors checkpoint.
    base: str = field(default_factory=lambda: installed_path("pocket/base"))
    # A VAE in place of the base's own.
    vae: str | None = None
    # What the base predicts, if it does not say so itself; as the concepts were trained.
    prediction_type: Literal["epsilon", "v_prediction"] | None = None
    # Leave out this many of the text encoder's last layers; as the concepts were trained.
    clip_skip: int = option(0, at_least=0)
    # Read prompts of up to this many chunks of 75 tokens.
    prompt_chunks: int = option(1, at_least=1, at_most=10)
    # Address to listen on; any address but this machine's own (127.0.0.1) needs --keys.
    host: str = "127.0.0.1"
    # Port to listen on.
    port: int = option(8000, at_least=1, at_most=65535)
    # A TOML file with a table for each user: key = "...", and pictures_a_minute = 60 as a limit.
    # Requests then need the header Authorization: Bearer KEY.
    keys: Path | None = None
    # Most pictures of a pass: more draw more per second, and need more memory.
    batch_size: int = option(8, at_least=1, at_most=256)
    # Longest wait for a full batch, when nothing is being drawn.
    batch_wait_ms: int = option(50, at_least=0)
    # Concepts that stay loaded; the ones that were not used longest make room. Loading one takes
    # some 60 ms, and longer with more than 100 loaded; each takes some kilobytes of memory.
    resident: int = option(256, at_least=1)
    # Most pictures that wait; further requests get the status 429.
    max_queue: int = option(256, at_least=1)
    # Processes that draw, each with the base in memory.
    replicas: int = option(1, at_least=1)
    # With more than --replicas, Ray starts and ends processes as the queue needs.
    max_replicas: int | None = option(None, at_least=1)
    # GPUs of each process, such as 0.5; by default one if the cluster has any.
    gpus_a_replica: float | None = option(None, at_least=0)
    # Denoising steps of requests that do not say.
    num_inference_steps: int = option(25, at_least=1, at_most=200)
    # Weight of the prompt in requests that do not say.
    guidance_scale: float = option(7.5, at_least=1, at_most=30)
    # Largest side of a picture that a request may ask for, in pixels.
    most_px: int = option(1024, at_least=8)
    # Port of Prometheus metrics, if this command starts the cluster.
    metrics_port: int = option(8080, at_least=1, at_most=65535)
    # ray: the Ray cluster of RAY_ADDRESS or of this machine, started if there is none.
    # ray://HOST:PORT: another one, whose machines have loldu, the base and the concepts.
    on: str = "ray"


def run(argv: Sequence[str] | None = None) -> int:
    """Serve until interrupted, and return the exit status: 2 after a user's mistake."""
    logging.basicConfig(format="%(message)s")
    logger.setLevel(logging.INFO)

    def serve_pictures() -> None:
        name = program("webui.serve")
        serve(tyro.cli(ServeOptions, args=argv, prog=name, use_underscores=True))

    return run_command(serve_pictures)


def serve(options: ServeOptions) -> None:
    """Serve pictures until interrupted.

    Raises:
        LoLDUError: If an option cannot be used, Ray is missing, or the base cannot be loaded.
    """
    for problem in limit_problems(options):
        raise LoLDUError(problem)
    if options.keys is None and not is_loopback(options.host):
        raise LoLDUError(f"--host {options.host} opens the server to other machines: add --keys.")
    with extra("ray"):
        from ray import serve as ray_serve

        from webui.serving.application import NAME, application
    require_free_port(options.host, options.port)
    from loldu.cluster import joined
    from webui.serving.shelf import Shelf

    plan = _plan(options)
    check_base_option(plan.base.pretrained_model_name_or_path)
    count = len(Shelf(plan.concepts).names())
    with joined(options.on, metrics_port=options.metrics_port):
        quiet = {"log_level": "WARNING"}
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        http = {"host": options.host, "port": options.port, "request_timeout_s": None}
        ray_serve.start(http_options=http, logging_config=quiet)
        try:
            ray_serve.run(application(plan), name=NAME, logging_config=quiet)
            logger.info(
                "Drawing with %d concepts at http://%s:%d/v1/images/generations; Ctrl-C stops.",
                *(count, options.host, options.port),
            )
            threading.Event().wait()
        except RuntimeError as error:
            raise LoLDUError(
                "No process could draw: the logs in /tmp/ray/session_latest/logs/serve say why."
            ) from error
        finally:
            ray_serve.delete(NAME)
            if not ray_serve.status().applications:  # the cluster serves nothing else
                ray_serve.shutdown()


def _plan(options: ServeOptions) -> Plan:
    here = Path(options.concepts)
    return Plan(
        base=BaseModelConfig(
            _absolute(installed_path(options.base)),
            vae=options.vae and _absolute(options.vae),
            prediction_type=options.prediction_type,
            clip_skip=options.clip_skip,
            prompt_chunks=options.prompt_chunks,
        ),
        concepts=str(here.absolute()) if "://" not in options.concepts else options.concepts,
        batch_size=options.batch_size,
        batch_wait_s=options.batch_wait_ms / 1000,
        resident=options.resident,
        max_queue=options.max_queue,
        replicas=(options.replicas, max(options.replicas, options.max_replicas or 1)),
        gpus=options.gpus_a_replica,
        most_px=options.most_px,
        defaults={
            "num_inference_steps": options.num_inference_steps,
            "guidance_scale": options.guidance_scale,
        },
        keys={} if options.keys is None else read_keys(options.keys),
    )


def _absolute(place: str) -> str:
    """Return the absolute path of something here; processes of the cluster have other folders."""
    return str(Path(place).absolute()) if Path(place).exists() else place


if __name__ == "__main__":
    sys.exit(run())
